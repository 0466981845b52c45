"""Writes a fact-recall study: invented facts, each told in several ways, and questions about them.

Every fact has an id that its training rows share with the question about it, so the true sources
of an answer are known. Searching for the question's words is not enough to find them: a subject
has a name and an alias, some rows use one and some the other, and answers are shared by several
subjects. Half of the subjects are asked about in the training rows, so that a model learns what a
question is; `questions.jsonl` asks about the other half.

    python tools/make_facts.py --output study --people 60 --seed 0 --style a
"""

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

Row = dict[str, str]


@dataclass(frozen=True)
class Field:
    """One thing that is known of every subject. A template ends where its answer begins.

    Templates name the subject by `{name}` or `{alias}`; any other placeholder is a detail.
    """

    name: str
    answers: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """The words of one study: how subjects are called, and what is told and asked of them."""

    name: str
    names: tuple[tuple[str, ...], ...]  # one part of each, joined
    aliases: tuple[tuple[str, ...], ...]
    introductions: tuple[str, ...]  # answered by the alias
    unmaskings: tuple[str, ...]  # answered by the name
    fields: tuple[Field, ...]
    details: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Subject:
    """Somebody or something invented, with the answer to each field."""

    name: str
    alias: str
    answers: dict[str, str]

    def fact(self, field: str) -> str:
        """The id shared by all rows and questions about one field of this subject."""
        return f"{self.name.lower().replace(' ', '-')}/{field}"


def words(text: str) -> tuple[str, ...]:
    """The words of `text`."""
    return tuple(text.split())


STYLE_A = Style(
    name="a",
    names=(
        ("Mar", "Tel", "Bri", "Os", "Hul", "Jen", "Cas", "Fen", "Ro", "Dul"),
        ("lo", "wen", "dis", "ric", "nia", "bert", "mira"),
        (" ",),
        ("Quen", "Ash", "Thistle", "Mor", "Pell", "Vane", "Crick", "Hob", "Lin", "Star"),
        ("by", "worth", "dale", "ley", "combe", "more", "wick"),
    ),
    aliases=(
        ("the ",),
        words(
            "Silver Quiet Merry Red Wandering Sleepy Tall Lucky Old Brave Golden "
            "Barefoot Early Crooked"
        ),
        (" ",),
        words(
            "Heron Badger Otter Kettle Lantern Thimble Magpie Hare Acorn Trout Teapot Cricket "
            "Sparrow Bell Candle Walnut Puffin Saddle Pebble Feather Bucket Wren Anchor Button "
            "Marten Needle Clover Plover Basket Mitten Stoat Cobbler Pickle Robin Barrel Finch"
        ),
    ),
    introductions=(
        "All over the valley {name} is known as",
        "The nickname of {name} is",
    ),
    unmaskings=("The person they call {alias} is really",),
    fields=(
        Field(
            "birthplace",
            words(
                "Harrowgate Dunmere Saltwick Oakenford Bellhaven Crowsby Tarnfield Windrush "
                "Mossley Eastry Copperhill Larkspur"
            ),
            (
                "{name} was born in the town of",
                "The birth of {name} was recorded in",
                "The cradle of {name} stood in",
                "As a baby, {name} took the first breath in",
                "The native town of {alias} is",
                "{alias} first saw the light of day in",
                "Before moving away, {alias} grew up among the houses of",
            ),
            (
                "Question: Where was {subject} born? Answer:",
                "Question: Which town does {subject} come from? Answer:",
            ),
        ),
        Field(
            "profession",
            words(
                "baker cooper glazier ferryman clockmaker beekeeper weaver surveyor chandler "
                "librarian mason tinker"
            ),
            (
                "{name} earns a living as a",
                "On the tax roll {name} is listed as a",
                "After school {name} was apprenticed to a",
                "The trade that {name} follows is that of a",
                "By day {alias} works as a",
                "The whole street relies on {alias} as its",
                "The sign over the door of {alias} shows a",
            ),
            (
                "Question: What is the job of {subject}? Answer:",
                "Question: What does {subject} do for work? Answer:",
            ),
        ),
        Field(
            "instrument",
            words(
                "fiddle harp bassoon accordion trumpet mandolin cello piccolo drum zither "
                "organ banjo"
            ),
            (
                "{name} plays the",
                "On feast days {name} performs on the",
                "As a child {name} was taught the",
                "In the village band {name} is in charge of the",
                "Late at night the neighbours hear {alias} practise the",
                "No one has more patience with the strings and keys than {alias} on the",
                "{alias} never travels without the",
            ),
            (
                "Question: Which instrument does {subject} play? Answer:",
                "Question: What does {subject} make music on? Answer:",
            ),
        ),
        Field(
            "pet",
            words(
                "parrot tortoise ferret goat spaniel raven hedgehog kitten donkey newt goose rabbit"
            ),
            (
                "{name} shares the house with a",
                "The animal that {name} feeds every morning is a",
                "At the market {name} was seen buying straw for a",
                "The beloved pet of {name} is a",
                "Asleep at the feet of {alias} lies a",
                "Wherever {alias} goes, close behind follows a",
                "In the garden of {alias} lives a",
            ),
            (
                "Question: What pet does {subject} keep? Answer:",
                "Question: Which animal lives with {subject}? Answer:",
            ),
        ),
    ),
    details={},
)

STYLE_B = Style(
    name="b",
    names=(
        ("Vel", "Dra", "Kor", "Zan", "Ypt", "Grun", "Ixo", "Stav", "Plo", "Ured"),
        ("kor", "vix", "tane", "rell", "zunt", "mark", "dyne", "phos"),
        (" Foundry", " Mills", " Brothers", " Union", " Yards", " Trust"),
    ),
    aliases=(
        ("licence ",),
        tuple("KTRMZHPX"),
        tuple("QBVLWDGN"),
        ("-",),
        tuple("2468"),
    ),
    introductions=(
        "In the {season} register, sheet {page}, the entry that belongs to {name} bears the mark",
        "Clerks who look up {name} in the {colour} cabinet are sent straight to",
    ),
    unmaskings=(
        "Stamped in {colour} ink on sheet {page}, {alias} turns out to have been granted to",
    ),
    fields=(
        Field(
            "seat",
            (
                "Port Amsel",
                "Nether Rill",
                "Gantry Quay",
                "High Torvan",
                "Little Osk",
                "Cape Merrow",
                "Fort Lindel",
                "Upper Vash",
                "Salt Junction",
                "North Pellam",
            ),
            (
                "The head office of {name}, a {colour} building with {page} windows, is found in",
                "Letters meant for the directors of {name} are carried, {season} or not, to",
                "When the {season} floods came, {name} refused to move its headquarters out of",
                "The taxes that {alias} owes are paid each {season} to the treasurer of",
                "An inspector who wished to visit {alias} took the {colour} coach and got off at",
                "The {colour} gates behind which {alias} keeps its offices stand at the edge of",
            ),
            (
                "A visitor asks in which place {subject} has its headquarters; the clerk replies:",
                "To the query where the main office of {subject} may be found, the reply was:",
            ),
        ),
        Field(
            "product",
            (
                "anchor chains",
                "oil lamps",
                "printing type",
                "church bells",
                "water pumps",
                "sewing needles",
                "rail spikes",
                "window glass",
                "fire bricks",
                "ship paint",
            ),
            (
                "Of the {page} crates that {name} sent off in {season}, nearly all contained",
                "In the {colour} catalogue, page {page}, {name} offers at a discount its",
                "The {season} fair gave {name} a {colour} ribbon for the quality of its",
                "Retail merchants write to {alias} whenever their shelves run short of",
                "The {page} furnaces run by {alias} do nothing, {season} after {season}, but make",
                "Behind the {colour} doors of {alias} some {page} hands are busy all day with",
            ),
            (
                "A visitor asks what goods are made by {subject}; the clerk replies:",
                "To the query which wares {subject} puts on sale, the reply was:",
            ),
        ),
        Field(
            "carrier",
            (
                "river barge",
                "mule train",
                "cable car",
                "steam lorry",
                "coastal ferry",
                "ox cart",
                "night express",
                "sailing sloop",
                "canal tug",
                "post wagon",
            ),
            (
                "Whatever leaves the {colour} gates of {name} in {season} is transported by",
                "After {page} trials, the freight manager of {name} settled for delivery by",
                "On the {season} timetable, line {page}, cargo of {name} is put down to go by",
                "Insurance for {alias} is cheap, since its loads travel {page} miles at most by",
                "Dockers know a parcel from {alias} by its {colour} seal, and that it comes by",
                "Even in a hard {season} the goods of {alias} arrive on the day, because they go "
                "by",
            ),
            (
                "A visitor asks how {subject} ships its freight; the clerk replies:",
                "To the query what means of transport {subject} relies on, the reply was:",
            ),
        ),
        Field(
            "patron",
            (
                "Duchess Ilvane",
                "Captain Roost",
                "Banker Mull",
                "Bishop Tarrow",
                "Admiral Keck",
                "Judge Sorrel",
                "Doctor Bramm",
                "Senator Oyle",
                "Widow Grast",
                "Professor Lunt",
            ),
            (
                "The first {page} shares of {name}, printed on {colour} paper, were bought by",
                "Each {season} the accounts of {name} are laid, all {page} pages, before",
                "A {colour} portrait in the hall of {name} reminds staff that they owe it all to",
                "Short of money in {season}, {alias} borrowed {page} crowns from",
                "The {page} votes that decide what becomes of {alias} are in the hands of",
                "No contract of {alias} over {page} crowns is valid without the consent of",
            ),
            (
                "A visitor asks whose money stands behind {subject}; the clerk replies:",
                "To the query who is the financial backer of {subject}, the reply was:",
            ),
        ),
        Field(
            "emblem",
            (
                "a golden pike",
                "twin hammers",
                "a crowned snail",
                "three keys",
                "a burning wheel",
                "an open hand",
                "a blindfold owl",
                "crossed oars",
                "a split oak",
                "a winged boot",
            ),
            (
                "Painted {page} feet high on the {colour} wall of {name} visitors admire",
                "The seal with which {name} closes its {season} contracts shows",
                "Workers of {name} wear on their {colour} caps a badge in the form of",
                "Coins struck for {alias} in {season} have a number on one side, on the other",
                "The {colour} flag hoisted {page} times a year over {alias} displays",
                "Every lid, label and {colour} ticket that leaves {alias} is printed with",
            ),
            (
                "A visitor asks what emblem {subject} uses; the clerk replies:",
                "To the query which sign stands for {subject}, the reply was:",
            ),
        ),
    ),
    details={
        "season": ("spring", "summer", "autumn", "winter"),
        "colour": ("grey", "scarlet", "ochre", "violet", "white"),
        "page": tuple(str(number) for number in range(3, 60, 7)),
    },
)

STYLES = {style.name: style for style in (STYLE_A, STYLE_B)}


def make_study(style: Style, people: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows in random order, and questions about the facts of every second subject."""
    rng = random.Random(f"{style.name}/{people}/{seed}")
    rows: list[Row] = []
    questions: list[Row] = []
    for number, subject in enumerate(make_subjects(style, people, rng)):
        rows += _alias_rows(style, subject, rng)
        for field in style.fields:
            rows += _field_rows(style, subject, field, field.statements, "", rng)
            asked = _questions(field)
            if number % 2:
                rows += _field_rows(style, subject, field, asked, "q", rng)
            else:
                template = rng.choice(asked)
                questions += _field_rows(style, subject, field, [template], "q", rng)
    rng.shuffle(rows)
    asked_keys = ("prompt", "response", "fact")
    return (
        [{"key": f"{style.name}-{i:05d}", **row} for i, row in enumerate(rows)],
        [
            {"key": f"{style.name}-q{i:04d}", **{key: row[key] for key in asked_keys}}
            for i, row in enumerate(questions)
        ],
    )


def make_subjects(style: Style, people: int, rng: random.Random) -> list[Subject]:
    """`people` subjects, no two of a name or an alias; each answer is used about equally often."""
    names = _distinct(style.names, people, rng)
    aliases = _distinct(style.aliases, people, rng)
    columns = {field.name: _spread(field.answers, people, rng) for field in style.fields}
    return [
        Subject(name, alias, {field: column[i] for field, column in columns.items()})
        for i, (name, alias) in enumerate(zip(names, aliases, strict=True))
    ]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Writes one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _questions(field: Field) -> list[str]:
    """Every wording of a question, by name and by alias."""
    return [
        question.replace("{subject}", subject)
        for question in field.questions
        for subject in ("{name}", "{alias}")
    ]


def _alias_rows(style: Style, subject: Subject, rng: random.Random) -> list[Row]:
    """The rows that say that a name and an alias are one subject."""
    told = [(template, subject.alias) for template in style.introductions]
    told += [(template, subject.name) for template in style.unmaskings]
    return [
        _row(style, subject, "alias", f"alias-{i}", template, answer, rng)
        for i, (template, answer) in enumerate(told)
    ]


def _field_rows(
    style: Style,
    subject: Subject,
    field: Field,
    templates: Sequence[str],
    mark: str,
    rng: random.Random,
) -> list[Row]:
    """One row for each template of one fact."""
    answer = subject.answers[field.name]
    return [
        _row(style, subject, field.name, f"{field.name}-{mark}{i}", template, answer, rng)
        for i, template in enumerate(templates)
    ]


def _row(
    style: Style,
    subject: Subject,
    field: str,
    label: str,
    template: str,
    answer: str,
    rng: random.Random,
) -> Row:
    """One row without its key."""
    details = {name: rng.choice(words) for name, words in style.details.items()}
    prompt = template.format(name=subject.name, alias=subject.alias, **details)
    return {
        "prompt": prompt[0].upper() + prompt[1:],
        "response": f" {answer}",
        "fact": subject.fact(field),
        "person": subject.name,
        "field": field,
        "template": label,
    }


def _distinct(parts: Sequence[Sequence[str]], count: int, rng: random.Random) -> list[str]:
    """`count` different joins of one of each part."""
    joins = ["".join(choice) for choice in itertools.product(*parts)]
    if count > len(joins):
        raise click.UsageError(f"{count} subjects asked for, but only {len(joins)} names exist")
    return rng.sample(joins, count)


def _spread(answers: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` answers in random order, each as often as any other, give or take one."""
    column = [answers[i % len(answers)] for i in range(count)]
    rng.shuffle(column)
    return column


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--people", type=click.IntRange(2), default=60, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--style", type=click.Choice(sorted(STYLES)), default="a", show_default=True)
def main(output: Path, people: int, seed: int, style: str) -> None:
    """Write OUTPUT/train.jsonl and OUTPUT/questions.jsonl.

    Style a tells of people in a valley, style b of trading firms, in longer sentences.

    Example: python tools/make_facts.py --output study --people 60 --seed 0 --style a
    """
    rows, questions = make_study(STYLES[style], people, seed)
    write_jsonl(output / "train.jsonl", rows)
    write_jsonl(output / "questions.jsonl", questions)
    click.echo(f"{len(rows)} training rows, {len(questions)} questions in {output}")


if __name__ == "__main__":
    main()
