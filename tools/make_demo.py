"""Makes the demo: a little town nobody has heard of, and a model that has read all about it.

Writes train.jsonl, questions.jsonl and model/ into forvalue_index/assets/demo. The questions are
taken by rule, two for each field, and not by how well their sources are found.

    python tools/make_demo.py
"""

from pathlib import Path

import click
from make_facts import Field, Row, Style, make_study, words, write_jsonl
from train_small_lm import accuracy, fit, save

ASSETS = Path(__file__).resolve().parent.parent / "forvalue_index" / "assets" / "demo"
PEOPLE = 40
QUESTIONS_PER_FIELD = 2
EPOCHS = 24
HIDDEN = 128
LAYERS = 3
VOCAB = 1536

TOWN = Style(
    name="demo",
    names=(
        ("Mari", "Tobi", "Wilo", "Odel", "Perri", "Basil", "Hetti", "Lumi", "Juno", "Fergu"),
        ("na ", "s ", "ra ", "n "),
        ("Apple", "Button", "Fiddle", "Honey", "Marsh", "Nettle", "Pepper", "Winter"),
        ("worth", "by", "mallow", "stone", "croft"),
    ),
    aliases=(
        ("Captain ", "Lady ", "Uncle ", "Granny ", "Professor ", "Cousin "),
        words(
            "Marmalade Thimble Cricket Teacup Pumpkin Whistle Mitten Sparrow Pickle Lantern "
            "Bramble Pocket Ribbon Acorn Puddle Feather"
        ),
    ),
    introductions=(
        "Around the harbour everybody calls {name} by the name of",
        "In the town newspaper {name} signs the gossip column as",
    ),
    unmaskings=("Behind the nickname {alias} hides nobody but",),
    fields=(
        Field(
            "pet",
            (
                "grumpy parrot",
                "spotted tortoise",
                "three-legged cat",
                "dancing goat",
                "tame raven",
                "shy hedgehog",
                "retired racehorse",
                "talking starling",
                "white ferret",
                "lazy bulldog",
                "blue lobster",
                "pair of geese",
                "gentle donkey",
                "clever piglet",
            ),
            (
                "{name} never goes to the post office without a",
                "Curled up beside the stove of {name} you will find a",
                "Every Sunday {name} brushes and combs a",
                "The neighbours of {alias} complain about the noise of a",
                "At the summer fair {alias} won first prize with a",
            ),
            ("What kind of animal lives with {subject}? It is a",),
        ),
        Field(
            "pudding",
            (
                "plum tart",
                "rhubarb crumble",
                "lemon cake",
                "ginger biscuits",
                "cherry pie",
                "almond custard",
                "walnut fudge",
                "pear dumplings",
                "toffee apples",
                "rice pudding",
                "honey buns",
                "blackberry jelly",
                "cocoa pancakes",
                "quince jam",
            ),
            (
                "{name} once walked nine miles in the rain for",
                "No birthday of {name} is complete without",
                "The doctor has forbidden {name} to eat any more",
                "The way to the heart of {alias} is a plate of",
                "On the kitchen shelf of {alias} there is always some",
            ),
            ("What does {subject} like best for dessert? Nothing beats",),
        ),
        Field(
            "instrument",
            (
                "fiddle",
                "harp",
                "bassoon",
                "accordion",
                "trumpet",
                "mandolin",
                "cello",
                "piccolo",
                "kettledrum",
                "zither",
                "pipe organ",
                "banjo",
                "bagpipes",
                "musical saw",
            ),
            (
                "In the lighthouse orchestra {name} plays the",
                "{name} learned from a sailor how to master the",
                "To wake up the ferryman {name} has to play the",
                "When the moon is full {alias} takes out the",
                "At weddings the dancing starts when {alias} tunes the",
            ),
            ("Which instrument does {subject} play? It is the",),
        ),
        Field(
            "key",
            (
                "flower pot",
                "rain barrel",
                "old boot",
                "bird box",
                "cuckoo clock",
                "sugar bowl",
                "beehive",
                "garden gnome",
                "hollow tree",
                "rowing boat",
                "milk churn",
                "piano stool",
                "scarecrow",
                "coal bucket",
            ),
            (
                "{name} hides the spare key of the house in the",
                "Locked out again, {name} reached for the key in the",
                "The burglar never guessed that {name} keeps the key in the",
                "Only the cat knows that {alias} puts the key in the",
                "To water the plants of {alias}, get the key from the",
            ),
            ("Where does {subject} keep the spare key? Look in the",),
        ),
    ),
    details={},
)


def pick(questions: list[Row]) -> list[Row]:
    """Some questions of each field, in the order of the fields, none about the same person."""
    chosen: list[Row] = []
    for field in TOWN.fields:
        asked = [row for row in questions if row["fact"].endswith(f"/{field.name}")]
        chosen += asked[len(chosen) : len(chosen) + QUESTIONS_PER_FIELD]
    return chosen


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=ASSETS, help="Assets folder.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(output: Path, seed: int) -> None:
    """Write the demo's training rows, questions and model.

    Example: python tools/make_demo.py --output demo
    """
    rows, questions = make_study(TOWN, PEOPLE, seed)
    chosen = pick(questions)
    write_jsonl(output / "train.jsonl", rows)
    write_jsonl(output / "questions.jsonl", chosen)
    model, tokenizer = fit(rows, EPOCHS, HIDDEN, LAYERS, VOCAB, seed)
    save(model, tokenizer, output / "model")
    for name, asked in (("all", questions), ("the demo's", chosen)):
        share = accuracy(model, tokenizer, asked)
        click.echo(f"{share:.1%} of {name} {len(asked)} questions answered right")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    click.echo(f"{size / 1e6:.2f} MB in {output}")


if __name__ == "__main__":
    main()
