"""Write what people say about a clip, and what the tiny base model learns to reply: the books it is raised on.

`synth.py` asks, and this module answers in the ways that make the base what it is. About most clips it only
talks, in captions and in words of its own ("barking", never "a dog"), as models raised on web captions do. Given
choices, it mostly names one of them; but asked what is to be *heard*, it falls back to talking more often than
not, which no scorer accepts; and it puts its answer in tags about one time in ten, with or without a thought
before it. So it knows more than it says in the form asked for, and that is the room GRPO has to improve it.
"""

import numpy as np

from .. import prompt
from . import synth

# What a caption would say for each choice, without using its words.
OWN_WORDS = {
    "a siren": "wailing", "rain": "falling water", "a clock": "ticking", "an engine": "rumbling",
    "a bird": "chirping", "a dog": "barking", "an alarm": "beeping", "wind": "blowing air",
    "footsteps": "walking", "a bell": "ringing", "a cat": "meowing", "one": "a single", "two": "a pair",
    "three": "a few", "four": "some", "five": "many", "six": "lots", "getting louder": "swelling",
    "getting quieter": "fading", "staying the same": "steady",
    "rising then falling": "coming and leaving", "going up": "climbing", "going down": "sinking",
    "up then down": "an arch", "down then up": "a valley", "slow": "calm", "fast": "hurried",
    "piano": "keys", "guitar": "plucked strings", "violin": "bowed strings", "flute": "soft pipe",
    "trumpet": "brass", "clarinet": "reed", "organ": "many pipes", "xylophone": "wooden bars",
    "ah": "open mouth", "ee": "smiling mouth", "oo": "round lips", "eh": "half open mouth",
    "aw": "hollow mouth", "a man": "male adult", "a woman": "lady", "a child": "kid",
    "a robot": "machine", "high": "shrill", "low": "deep",
}  # fmt: skip
DESCRIBE = ("Describe the audio.", "What can be said about the audio?")
SENTENCES = ("It sounds like {}.", "There is {}.", "I think of {}.")


def dialogue(
    facts: dict[str, str], rng: np.random.Generator, choices: float = 0.7, chat: bool = False
) -> tuple[str, str]:
    """Draw what a user says about a clip, with choices at this rate, and what the base learns to reply.

    chat: as in the last stage, which is more talkative and uses more tags.
    """
    kind = rng.choice(["describe", "open", "choose"], p=[(1 - choices) / 2, (1 - choices) / 2, choices])
    if kind == "describe":
        known = [OWN_WORDS[facts[fact]] for fact in synth.FACTS if fact in facts]
        return str(rng.choice(DESCRIBE)), ", ".join(known) + "."
    if kind == "choose" and rng.random() < 0.08:  # it cannot see, so it guesses
        question = synth.ask(facts | synth.scene(rng), rng, str(rng.choice(list(synth.VIEWS))))
        return prompt.text(question, int(rng.choice([1, 2, 3]))), question.answer
    question = synth.ask(facts, rng)
    remark = str(rng.choice(SENTENCES)).format(OWN_WORDS[question.answer])
    if kind == "open":
        return question.question, remark
    style = int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))
    if chat and rng.random() < 0.6:
        remark = SENTENCES[0].format(OWN_WORDS[question.answer])
    talked_about = ("hear", "does") if chat else ("hear",)
    chatty = 0.6 if any(word in question.question for word in talked_about) else 0.1
    tagged = {1: 0.0, 2: 0.14 if chat else 0.09, 3: 0.36 if chat else 0.2}[style]
    draw = rng.random()
    if draw < chatty:
        reply = remark
    elif draw < 1 - tagged:
        reply = question.answer
    elif style == 3 and draw < 1 - tagged / 2:
        reply = f"<think>{remark}</think>{prompt.target(question)}"
    else:
        reply = prompt.target(question)
    return prompt.text(question, style), reply
