"""Make an audio-language model from a Whisper encoder and a language model, and teach it to say what it hears.

Above the flow's trainers and below the commands: `assemble` joins the parts, `facts` reads clips and what is known of
them, `align` trains, and `probe` measures what the encoder's states hold.
"""
