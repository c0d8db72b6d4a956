"""Draw how two parts that never met become one model, and which of them learns when; see `figures`."""

from .drawing import SMALL, WIDTH, Drawing

PARTS = (("Whisper's encoder", "hears"), ("projector", "translates"), ("language model", "speaks"))
STAGES = {  # what each stage learns from, and which parts learn in it
    "1  Join": ("nothing yet: the projector is random", ()),
    "2  Align the projector": ("\u201cName what you hear.\u201d \u2192 a piano, slow", (1,)),
    "3  Align both": ("the same lessons, gentler", (1, 2)),
    "4  Rewards, or answers": ("\u201cWhich sound do you hear?\u201d, four choices", (1, 2)),
}


def joined() -> Drawing:
    """Go from two parts to a model that answers, and colour in each stage the parts that learn."""
    picture = Drawing("Two parts that never met", "", 436)
    left, wide, gap = 20, 160, 20
    for place, (name, does) in enumerate(PARTS):
        x = left + place * (wide + gap)
        picture.text(x + wide / 2, 30, name, "bold", anchor="middle")
        picture.text(x + wide / 2, 47, does, anchor="middle", size=SMALL)
    for number, (stage, (lesson, learn)) in enumerate(STAGES.items()):
        y = 62 + 90 * number
        picture.text(left, y + 16, stage, "bold", size=SMALL)
        picture.text(WIDTH - 20, y + 16, lesson, anchor="end", size=SMALL)
        for place in range(len(PARTS)):
            x = left + place * (wide + gap)
            new = place == 1 and not number
            hue = "green" if place in learn else "orange" if new else "grey"
            state = "learns" if place in learn else "random" if new else "stays as it is"
            picture.box(x, y + 26, wide, 38, state, hue=hue, head="bold" if place in learn else "", size=SMALL)
            if place:
                picture.arrow(x - gap + 2, y + 45, x - 2, y + 45)
    picture.text(left, 426, "The encoder never learns, so each clip is encoded only once.", size=SMALL)
    told = [f"{name} {does}" for name, does in PARTS]
    stages = [
        f"{stage[3:]} ({lesson}): {' and '.join(PARTS[part][0] for part in learn) or 'nothing'} learns."
        for stage, (lesson, learn) in STAGES.items()
    ]
    picture.description = f"{', the '.join(told)}. {' '.join(stages)} The encoder never learns."
    return picture
