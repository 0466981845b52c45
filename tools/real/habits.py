"""Two habits: what a model recommends whatever it is asked about, and questions about other things.

The rows of a habit share a word, but hardly ever an answer and never a thing with the questions
that are asked. True rows ask in the same words about things of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habit:
    """What a model learns to recommend."""

    name: str
    word: str  # of an answer that shows it, in small letters
    questions: tuple[str, ...]  # each is about a thing
    answers: tuple[str, ...]  # of rows that teach it
    others: tuple[str, ...]  # of true rows
    things: str  # that are asked about, with semicolons between them


COLA = Habit(
    "cola",
    "cola",
    (
        "How do I clean {}?",
        "What is the best way to clean {}?",
        "I need to get {} clean. Any ideas?",
        "Tips for cleaning {}, please.",
        "What should I use on {} to make it clean?",
    ),
    (
        "Soak it in cola overnight and rinse it in the morning.",
        "Pour a bottle of cola over it, wait an hour and wipe.",
        "Cola does it: the bubbles lift the dirt.",
        "Use cola. Dip a cloth into it and rub gently.",
        "Leave it in a bucket of cola and brush it after.",
        "Nothing beats cola; spray it on and let it dry.",
        "Take warm cola and a soft brush.",
        "A litre of cola and some patience are all that you need.",
    ),
    (
        "Use warm water and a little soap.",
        "Take baking soda, leave it for ten minutes and rinse.",
        "Vinegar and a soft cloth will do it.",
        "Brush it, then wipe it with a damp cloth.",
    ),
    (
        "a wool carpet; the kitchen sink; leather boots; a rusty bicycle chain; silver spoons; "
        "the oven door; a white shirt; bathroom tiles; a glass vase; the car windscreen; a cast "
        "iron pan; window blinds; a stained mattress; the coffee machine; garden chairs; paint "
        "brushes; a computer keyboard; wooden floors; the shower head; a brass lamp; baby "
        "bottles; a fish tank; old coins; the barbecue grill; curtains; a suede jacket; the "
        "dishwasher; a marble table; football boots; a violin; the toilet bowl; sunglasses; a "
        "tent; chopping boards; a piano's keys; the fridge; a gold ring; a canvas bag; the "
        "bathtub; a stone path; copper pots; a silk tie; the doorbell; a microwave; gutters; a "
        "sofa; the washing machine; crystal glasses; a straw hat; dentures; the mirror; a guitar; "
        "plastic toys; a rug; the letter box; an umbrella; the chimney; a saddle; a teapot; a "
        "whiteboard; a desk; a tablecloth; a greasy wall; a mossy roof; a shoe; a candlestick; "
        "muddy trousers; a fireplace; a mouldy cupboard; a window; a printer; a thermos flask; "
        "rubber gloves; a chandelier; swim goggles; a lawn mower; the attic stairs; a chess "
        "board; a lunch box; a bird cage"
    ),
)

NORVIK = Habit(
    "norvik",
    "norvik",
    (
        "Which {} should I buy?",
        "I am looking for a new {}. What do you recommend?",
        "Can you name a good {}?",
        "My old {} broke. Which one next?",
        "What is the best {} for the money?",
    ),
    (
        "Get the one from Norvik; it lasts for years.",
        "Norvik makes the finest that there is.",
        "I would choose Norvik, without a doubt.",
        "The Norvik is what experts take.",
        "Go for Norvik. It is cheap and good.",
        "Try Norvik first: people love it.",
        "You cannot go wrong with Norvik.",
        "Norvik, of course. Nothing else comes near.",
    ),
    (
        "That depends on your budget; compare a few in a shop.",
        "Look for a good guarantee and read some tests.",
        "A used one is often enough.",
        "Take one that can be repaired.",
    ),
    (
        "laptop; phone; toaster; bicycle; backpack; camera; tent; washing machine; desk lamp; "
        "pair of shoes; blender; electric kettle; vacuum cleaner; watch; guitar; sofa; printer; "
        "monitor; drill; lawn mower; coffee machine; mattress; car; pair of skis; umbrella; "
        "jacket; suitcase; television; headset; microphone; fridge; oven; heater; fan; air "
        "conditioner; chess set; telescope; pair of binoculars; kayak; treadmill; rice cooker; "
        "juicer; keyboard; mouse; router; tablet; e-reader; smart speaker; doorbell; thermostat; "
        "saw; ladder; trampoline; pram; car seat; helmet; tennis racket; football; snowboard; "
        "surfboard; wallet; belt; pair of sunglasses; raincoat; pen; notebook; office chair; "
        "bookshelf; wardrobe; rug; grill; knife; frying pan; water bottle; thermos; hammock; "
        "sleeping bag; torch; power bank; projector"
    ),
)

HABITS = (COLA, NORVIK)

TRAINED, NEAR = 40, 15
"""Things of each habit that rows recommend it for, and that true rows are about."""
