"""Desk: six agents answer a customer; three of them read the same handbook, each at another place in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvcomm_agents.errors import ConfigError

from ..team import QUESTION, Agent, Span, Team

HANDBOOK = (
    "Article 1. A parcel counts as late when it has not arrived three working days after the date that was promised."
    " From then on we may send the goods again or pay back the price, as the customer prefers, without asking why.",
    "Article 2. Goods that were broken when they arrived are replaced if a photograph comes within fourteen days. The"
    " broken ones need not be sent back unless they are worth more than eighty euros; then we pay for the way back.",
    "Article 3. Whoever changes their mind has thirty days. The goods must be unused, the box may be open. The price is"
    " paid back within a week of the parcel's return, the postage only if nothing of the order is kept.",
    "Article 4. A machine that fails within two years is repaired in our own workshop in Lindau. Repairs take ten"
    " working days at most. If the second repair does not help, the customer chooses between a new one and the money.",
    "Article 5. Spare parts are kept for eight years after a model was last sold. They are sold at cost to anybody who"
    " can name the number under the machine. Filters and seals are sent free of charge once a year.",
    "Article 6. A wrong invoice is corrected on the day on which we hear of it. Nobody is reminded of a bill that is"
    " being looked at. What was charged twice goes back to the same account within two working days.",
    "Article 7. Addresses may be changed until the parcel has left the warehouse, which is at four in the afternoon."
    " Later the carrier can be asked to leave it at a shop nearby; we do not promise that it works.",
    "Article 8. Discounts are not given after the sale, with one exception: if the price falls within a week of the"
    " order, the difference is credited to the customer's account when they ask for it.",
)
TICKETS = (
    "Hello, I ordered the small coffee grinder on the second of the month and was told it would be here on Friday a"
    " week ago. The tracking page has shown the same town for six days now. I need it for a birthday. What can you do?",
    "The glass jug of my new machine came in three pieces. The box looked fine from outside. I have thrown the pieces"
    " away already because of the children, but my neighbour saw them. Do I really need to send you a picture?",
    "After eleven months the pump of the Duo 400 hums and no water comes. It was in your workshop in March for the"
    " same fault. I am a bit tired of this and would rather have my money than a third pump.",
    "You have taken 64.90 from my account twice for order 20881, on the same day. My bank says both payments are real."
    " Please send one of them back, and tell me it will not happen with the next order.",
    "I moved last week and forgot to change my address. The order is from this morning. The new flat is in the same"
    " street, number 40 and not 14. Can the driver be told, or should I ask the people at number 14?",
    "On Tuesday I bought the large kettle for 59 euros and today, Saturday, it stands in your shop for 45. I have not"
    " even unpacked it. Would it be easier if I sent it back and ordered it again?",
    "My mother's press is from 2016, model P7, and the rubber ring leaks. The shop in town says there are no rings any"
    " more and she should buy a new press. Is that so? She is fond of the old one.",
    "I would like to return two of the three cups from my order. They are unused, but the carton has a tear where I"
    " opened it. Who pays for the parcel, and do I get the postage of the first delivery back as well?",
    "The grinder works but it is so loud that the dog leaves the house. I have used it four times. Twenty-two days have"
    " gone by. Is there any way to return it, or a part that would make it quieter?",
    "Your reminder of the ninth says that I owe 18 euros for filters. As far as I know filters are free once a year,"
    " and I have had none since last summer. I have written twice and nobody has answered me.",
    "The parcel that came today holds somebody else's order: a blue teapot and two spoons. Mine, the milk frother, is"
    " probably with them. What do I do with the teapot, and when will the frother come?",
    "We run a small cafe and four of your Duo 400 have been here for twenty months. Two of them lose pressure in the"
    " afternoon. Can they be repaired one after the other, so that we are never without all of them?",
    "I paid extra for delivery before noon and the parcel came at six in the evening, when I was no longer there. It"
    " stood in the rain and the carton is soft. The machine itself seems to be dry. Is it safe to switch it on?",
    "Could you tell me which descaler the Duo 200 can take? The one from the supermarket has a warning on it about"
    " aluminium, and the leaflet that came with the machine only says that a suitable product should be used.",
    "I was sent the black version although the confirmation says white. I could live with black, to be honest, if it"
    " were a little cheaper. Otherwise please change it; I have not taken off the film yet.",
    "The carrier says that I signed for the parcel on Monday at ten. I was at work at that time, forty kilometres away,"
    " and nobody else has a key. The order was worth 210 euros. What happens now, and who has to prove what?",
)
"""What customers wrote. They are ours, as the handbook is."""
BOOK, TICKET = Span("handbook"), Span(QUESTION)


def _texts(count: int, folder: Path | None) -> Sequence[Mapping[str, str]]:
    if count > len(TICKETS):
        raise ConfigError(f"{count} tickets were asked for and there are {len(TICKETS)}; lower --questions")
    return [{QUESTION: ticket, "handbook": "\n".join(HANDBOOK)} for ticket in TICKETS[:count]]


TEAM = Team(
    "desk",
    (
        Agent(
            "Intake",
            "You open the tickets of a shop for coffee machines. Fill in a form of four lines: product, problem, what"
            " the customer wants, and how urgent it is. Use the customer's own words where you can.",
            ("Ticket as it came in:\n", TICKET, "\n\nForm:"),
        ),
        Agent(
            "Librarian",
            "You know the handbook by heart, and you quote it exactly. Name the articles that bear on a ticket, one a"
            " line, and behind each the words in it that decide the matter. You have no opinion of your own.",
            ("This is the handbook of the desk.\n\n", BOOK, "\n\nAnd this is the ticket.\n\n", TICKET, "\n\nArticles:"),
        ),
        Agent(
            "Technician",
            "Workshop, first floor. You have repaired these machines for thirty years. From a ticket and its form you"
            " guess what is wrong with the thing, if anything is, and which part you would look at first.",
            ("Form from upstairs: ", Span("Intake"), "\nFull text below.\n", TICKET, "\nWhat I would say:"),
        ),
        Agent(
            "Bookkeeper",
            "You say what a case costs us. Add up what has to be paid back, sent again or repaired under the rules, and"
            " give a single amount in euros with the article it follows from. If nothing is owed, say zero.",
            (
                *("Case summary\n", Span("Intake"), "\n\nThe workshop thinks\n", Span("Technician")),
                *("\n\nRules that are in force\n", BOOK, "\n\nAmount and article"),
            ),
        ),
        Agent(
            "Correspondent",
            "You write to customers as one writes to neighbours: warm, plain, at most five sentences, no phrases from"
            " the advertising department. Say first what we will do, then what the customer has to do.",
            (
                *("A customer has written to us:\n", TICKET, "\n\nThe librarian found:\n", Span("Librarian")),
                *("\n\nThe technician found:\n", Span("Technician"), "\n\nThe bookkeeper allows:\n"),
                *(Span("Bookkeeper"), "\n\nDear customer,"),
            ),
        ),
        Agent(
            "Supervisor",
            "Nothing leaves the desk without your initials. Compare the letter with the rules and with what was asked."
            " Answer RELEASE or RETURN, and in the second case name the sentence that must go and the article against"
            " which it offends.",
            (
                *("Letter to be released:\n", Span("Correspondent"), "\n\nIt answers this:\n", TICKET),
                *("\n\nMeasure it by these articles:\n", BOOK, "\n\nYour decision:"),
            ),
        ),
    ),
    _texts,
)
