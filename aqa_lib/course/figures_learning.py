"""Draw how a policy learns: the cycle, advantages, clipping, a wrong label, the shared row; see `figures`."""

import numpy as np
import torch

from .. import reward
from ..logps import shared_row
from ..loss import group_advantages, grpo_loss
from .drawing import SMALL, WIDTH, Drawing

G = 8  # answers to a question, as in the paper
ANSWERS = ("blue", "orange", "green")  # hues of the answers in a group


def _signed(value: float) -> str:
    return "0" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _hue(value: float) -> str:
    return "grey" if abs(value) < 0.005 else "blue" if value > 0 else "orange"


def _group() -> tuple[list[str], list[float], list[float]]:
    """Return four replies to "What barks?", their two rewards added up, and their advantages."""
    replies = ["<answer>dog</answer>", "dog", "<answer>cat</answer>", "It meows."]
    columns = {"answer": ["dog"] * 4, "choices": [["dog", "cat"]] * 4}
    total = [
        a + b for a, b in zip(reward.accuracy(None, replies, **columns), reward.format(None, replies), strict=True)
    ]
    return replies, total, group_advantages(torch.tensor([total]))[0].tolist()


def cycle() -> Drawing:
    """Go round GRPO's circle once: sample, reward, compare, step."""
    replies, earned, advantages = _group()
    picture = Drawing("One step of GRPO", "", 404)
    wide, high = 232, 150
    corners = {"sample": (20, 52), "reward": (308, 52), "compare": (308, 238), "step": (20, 238)}
    picture.text(WIDTH / 2, 30, "One question, G answers: What barks?", "bold", anchor="middle", size=15)
    heads = (
        "1  Sample: the policy answers",
        "2  Reward: a program scores",
        "3  Compare with the mean",
        "4  Step: change the odds",
    )
    for (x, y), head, hue in zip(corners.values(), heads, ("grey", "yellow", "green", "blue"), strict=True):
        picture.rectangle(x, y, wide, high, hue)
        picture.text(x + 10, y + 24, head, "bold", size=SMALL, space=wide - 16)
    for place, text in enumerate(replies):
        y = 102 + 25 * place
        picture.text(32, y, text, "mono", size=SMALL)
        picture.text(320, y, f"reward {earned[place]:g}")
        picture.bar(400, y - 11, 60 * earned[place] / max(earned) + 2, 13, "yellow")
        below, middle, long = y + 186, 492, 36 * advantages[place] / max(advantages)
        picture.text(320, below, f"advantage {_signed(advantages[place])}")
        picture.bar(min(middle, middle + long), below - 11, abs(long) + 1, 13, _hue(long))
        picture.text(90, below, ("more likely", "unchanged", "less likely")[1 - int(np.sign(round(long, 3)))])
        y_up = 14 * np.sign(round(long, 3))
        if y_up:
            picture.arrow(
                54, below - 5 + y_up / 2, 54, below - 5 - y_up / 2, hue="blue" if long > 0 else "orange", thick=3
            )
        else:
            picture.line(47, below - 5, 61, below - 5, hue="grey", thick=3)
    picture.arrow(254, 127, 306, 127)
    picture.arrow(424, 204, 424, 236)
    picture.arrow(306, 313, 254, 313)
    picture.arrow(136, 236, 136, 204)
    picture.text(146, 225, "with the new weights", size=SMALL)
    each = zip(replies, earned, advantages, strict=True)
    told = ["A circle of four steps.", *(f"{text}: reward {r:g}, advantage {_signed(a)}." for text, r, a in each)]
    told.append("Answers with a positive advantage become more likely, those with a negative one less; then the new")
    picture.description = " ".join([*told, "policy samples again."])
    return picture


def advantage() -> Drawing:
    """Turn a group's rewards into advantages, and a group of equal rewards into nothing."""
    _, earned, advantages = _group()
    earned, equal = torch.tensor([earned]), torch.ones(1, 4)
    centred = group_advantages(earned, scale_rewards="none")[0].tolist()
    spread, mean, earned = earned.std().item(), earned.mean().item(), earned[0].tolist()
    silent = group_advantages(equal)[0].tolist()
    picture = Drawing("From a group's rewards to its advantages", "", 366)
    panels = (
        ("rewards", earned, ""),
        ("less the mean", centred, f"mean {mean:g}"),
        ("over the deviation", advantages, f"deviation {spread:.2f}"),
    )
    for place, (name, values, note) in enumerate(panels):
        left, zero = 20 + 184 * place, 140
        picture.text(left + 76, 32, name, "bold", anchor="middle")
        picture.line(left, zero, left + 152, zero, hue="grey")
        for number, value in enumerate(values):
            x, hue = left + 6 + 37 * number, "yellow" if not place else _hue(value)
            picture.bar(x, zero, 28, -38 * value or -1.5, hue)
            up = value >= 0
            label = f"{value:g}" if not place else _signed(value)
            picture.text(
                x + 14, zero - 38 * value - 6 if up else zero - 38 * value + 15, label, anchor="middle", size=SMALL
            )
        if not place:
            picture.line(left, zero - 38 * mean, left + 152, zero - 38 * mean, dashed=True)
            picture.text(left + 152, zero - 38 * mean - 6, "mean", anchor="end", size=SMALL)
        if place:
            picture.arrow(left - 26, 62, left - 6, 62)
            picture.text(left + 76, 220, note, anchor="middle", size=SMALL)
    picture.line(16, 240, WIDTH - 16, 240, hue="grey")
    picture.text(20, 266, "And where all answers earn the same?", "bold")
    for place, (values, name) in enumerate(((equal[0].tolist(), "rewards"), (silent, "advantages"))):
        x = 20 + 236 * place
        picture.text(x, 298, name)
        for number, value in enumerate(values):
            picture.box(x + 88 + 30 * number, 281, 26, 26, f"{value:g}", hue=("yellow", "grey")[place], head="")
    picture.arrow(232, 294, 250, 294)
    picture.text(20, 332, "No deviation, no advantage, no gradient: a question that is too easy or too hard")
    picture.text(20, 350, "for the whole group teaches nothing.")
    picture.description = (
        f"Rewards {', '.join(f'{v:g}' for v in earned)}; less their mean of {mean:g}: "
        f"{', '.join(map(_signed, centred))}; over their deviation of {spread:.2f}: "
        f"{', '.join(map(_signed, advantages))}. Four equal rewards give four advantages of 0, and so no gradient."
    )
    return picture


def clipping(epsilon: float = 0.2) -> Drawing:
    """Plot what a token gains by its ratio, for an advantage of +1 and of -1."""
    picture = Drawing("The clipped ratio", "", 320)
    ratios = torch.linspace(0.4, 1.6, 121)

    def gain(ratio: torch.Tensor, sign: float) -> torch.Tensor:
        logps, one = ratio.log()[:, None], torch.ones(1, 1)
        pairs = (grpo_loss(logp[None], torch.zeros(1, 1), torch.tensor([sign]), one, beta=0)[0] for logp in logps)
        return -torch.stack(list(pairs))

    for sign, left, name in ((1.0, 52, "A good answer, A = +1"), (-1.0, 326, "A bad answer, A = \N{MINUS SIGN}1")):
        values = gain(ratios, sign)
        x = left + (ratios - 0.4) / 1.2 * 206
        top, bottom = (0.4, 1.6) if sign > 0 else (-1.6, -0.4)
        y = 220 - (values - top) / (bottom - top) * 150
        picture.text(left + 103, 32, name, "bold", anchor="middle")
        picture.line(left, 62, left, 228, left + 210, 228, hue="grey")
        for mark in (1 - epsilon, 1.0, 1 + epsilon):
            place = left + (mark - 0.4) / 1.2 * 206
            picture.line(place, 62, place, 232, hue="grey", dashed=mark != 1, thick=1)
            picture.text(place, 248, f"{mark:g}", anchor="middle", size=SMALL)
        for mark in (0.5, 1.0, 1.5):
            height = 220 - (sign * mark - top) / (bottom - top) * 150
            picture.text(
                left - 6, height + 4, f"{sign * mark:g}".replace("-", "\N{MINUS SIGN}"), anchor="end", size=SMALL
            )
        flat = torch.isclose(values[1:], values[:-1], atol=1e-6)
        edge = int(flat.int().argmax()) if sign > 0 else int(flat.sum())
        first = [point for pair in zip(x.tolist(), y.tolist(), strict=True) for point in pair]
        moving, still = (
            (first[: 2 * edge + 2], first[2 * edge :]) if sign > 0 else (first[2 * edge :], first[: 2 * edge + 2])
        )
        picture.line(*moving[:2], *moving[-2:], hue="blue", thick=3)
        picture.line(*still[:2], *still[-2:], hue="orange", thick=3, dashed=True)
        bound = ratios[edge].item()
        words = f"flat above {bound:.1f}" if sign > 0 else f"flat below {bound:.1f}"
        picture.text(left + 103, 292, f"{words}: no gradient", hue="orange", anchor="middle", size=SMALL)
    picture.text(WIDTH / 2, 268, "ratio: new probability of the token over the old one", anchor="middle", size=SMALL)
    picture.text(14, 50, "gain", size=SMALL)
    picture.description = (
        "Two plots of the gain by the ratio. Advantage +1: the gain rises with the ratio and is flat above "
        f"{1 + epsilon:g}. Advantage -1: the gain is flat below {1 - epsilon:g} and falls with the ratio above it. "
        "Where it is flat there is no gradient."
    )
    return picture


def wrong_label() -> Drawing:
    """Teach a label that the model would hardly ever say, by SFT and by GRPO."""
    names, label = ("dog", "rain", "wind", "cat"), 3
    logits = torch.tensor([4.0, 2.0, 1.0, -0.6], dtype=torch.float64, requires_grad=True)
    chances = logits.softmax(0)
    (pull,) = torch.autograd.grad(chances[label].log(), logits)
    chances = chances.tolist()
    never = (1 - chances[label]) ** G
    nothing = group_advantages(torch.zeros(1, G))[0].tolist()
    lucky = group_advantages(torch.tensor([[1.0] + [0.0] * (G - 1)]))[0, 0].item()
    picture = Drawing("A wrong label, taught in two ways", "", 440)
    picture.text(20, 32, "The clip: a dog. The label, by mistake: cat. The model says:", "bold")
    for place, (name, chance) in enumerate(zip(names, chances, strict=True)):
        y = 58 + 24 * place
        picture.text(92, y, name, anchor="end")
        picture.bar(104, y - 12, 300 * chance + 1, 16, "orange" if place == label else "grey")
        picture.text(112 + 300 * chance, y, f"{100 * chance:.1f} %", size=SMALL)
    for x, head, hue in ((20, "SFT copies the label", "orange"), (288, "GRPO judges what is said", "blue")):
        picture.rectangle(x, 152, 252, 272, hue)
        picture.text(x + 126, 178, head, "bold", anchor="middle", space=240)
    picture.lines(34, 202, ("the pull on each word's score,", "target less probability:"), size=SMALL)
    for place, (name, value) in enumerate(zip(names, pull.tolist(), strict=True)):
        y, long = 246 + 26 * place, 64 * value
        picture.text(72, y, name, anchor="end")
        picture.bar(min(138, 138 + long), y - 12, abs(long) + 1, 16, "blue" if long > 0 else "orange")
        picture.text(264, y, _signed(value), anchor="end", size=SMALL)
    wrong = _signed(pull[label].item())
    picture.paragraph(
        34, 354, f"The mistake pulls hardest, as the model knows better: {wrong} for cat.", 220, size=SMALL
    )
    picture.text(302, 202, f"{G} answers, drawn by the model:", size=SMALL)
    said = ["dog"] * 6 + ["rain", "dog"]
    for place, word in enumerate(said):
        picture.box(302 + 57 * (place % 4), 212 + 32 * (place // 4), 52, 26, word, head="", size=SMALL)
    picture.lines(
        302,
        296,
        (f"rewards {', '.join(['0'] * G)}", "deviation 0", f"advantages {', '.join(f'{v:g}' for v in nothing)}"),
        size=SMALL,
    )
    told = f"All wrong, all alike: no gradient. So it is in {100 * never:.0f} % of the groups; where one says cat, "
    told += f"it gets {_signed(lucky)}. (A right answer never said fares no better.)"
    picture.paragraph(302, 354, told, 230, size=SMALL)
    picture.description = (
        "The model gives "
        + ", ".join(f"{n} {100 * c:.1f} %" for n, c in zip(names, chances, strict=True))
        + ". The wrong "
        f"label is cat. SFT's pull on the score of cat is {wrong}, the strongest of all. Under GRPO all {G} answers "
        f"of a group are other words in {100 * never:.0f} % of the groups: rewards 0, deviation 0, no gradient."
    )
    return picture


def row() -> Drawing:
    """Lay out a group's answers after their prompt, with the mask that keeps them apart."""
    P, lengths = 4, (3, 2, 3)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    sees, places, _ = shared_row(torch.ones(1, P), mask[None])
    sees, places = sees[0, 0], places[0].tolist()
    owners = ["grey"] * P + [hue for hue, length in zip(ANSWERS, lengths, strict=True) for _ in range(length)]
    names = [f"p{i + 1}" for i in range(P)] + [
        f"{letter}{i + 1}" for letter, length in zip("abc", lengths, strict=True) for i in range(length)
    ]
    T, cell = len(owners), 23
    plain, once = sum(P + length for length in lengths), T
    prompt, answer = 280, 12
    ratio = G * (prompt + answer) / (prompt + G * answer)
    picture = Drawing("One prompt, a group of answers, one row", "", 480)
    picture.text(20, 30, f"The plain way: the prompt three times, {plain} tokens", "bold")
    for number, length in enumerate(lengths):
        for place, name in enumerate(names[:P] + [f"{'abc'[number]}{i + 1}" for i in range(length)]):
            hue = "grey" if place < P else ANSWERS[number]
            picture.box(20 + 176 * number + cell * place, 42, 21, 24, name, hue=hue, head="", size=11)
    picture.text(20, 96, f"The shared row: the prompt once, {once} tokens", "bold")
    left, top = 78, 152
    picture.text(left - 8, 124, "token", anchor="end", size=SMALL)
    picture.text(left - 8, 144, "position", anchor="end", size=SMALL)
    for place, (hue, name) in enumerate(zip(owners, names, strict=True)):
        picture.box(left + cell * place, 108, 21, 22, name, hue=hue, head="", size=11)
        picture.text(left + cell * place + 10.5, 145, str(places[place]), anchor="middle", size=11)
        picture.box(left - 29, top + cell * place, 21, 21, name, hue=hue, head="", size=11)
        for other in range(T):
            if sees[place, other]:
                picture.add(
                    "rect",
                    f"{owners[other]}-solid",
                    x=left + cell * other,
                    y=top + cell * place,
                    width=21,
                    height=21,
                    rx=2,
                )
            else:
                x, y = left + cell * other + 0.5, top + cell * place + 0.5
                picture.add("rect", "grey-line", x=x, y=y, width=20, height=20, rx=2, opacity=0.35)
    told = (
        "Filled: the token of the row sees that of the column.",
        "Each answer sees the prompt and itself, never another answer, and its positions continue the prompt's.",
        f"Prompt {prompt}, {G} answers of {answer}: {ratio:.1f} times fewer tokens.",
    )
    for text, y in zip(told, (176, 248, 356), strict=True):
        picture.paragraph(374, y, text, 172, 18, SMALL)
    picture.text(
        20, 460, "Same log-probabilities, same gradients: the answers only share what is the same.", size=SMALL
    )
    picture.description = (
        f"A row of {P} prompt tokens and three answers of {', '.join(map(str, lengths))} tokens, and its mask. Every "
        "answer sees the prompt and its own earlier tokens. Positions: "
        f"{', '.join(map(str, places))}. {once} tokens in place of {plain}."
    )
    return picture
