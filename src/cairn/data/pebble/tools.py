"""The functions that Pebble can call: name, parameters, the values they take, ways of asking, and what they give back.

Data and its small classes alone; how rows are made of it stands in skills/functions.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cairn.data.pebble import tables


@dataclass(frozen=True)
class Parameter:
    """One argument: its values come from a list or from a range of whole numbers."""

    values: Sequence[str] | range
    closed: bool = False
    """Whether the schema lists the values ("enum")."""

    def schema(self) -> dict[str, Any]:
        """The JSON schema of this parameter."""
        kind: dict[str, Any] = {"type": "integer" if isinstance(self.values, range) else "string"}
        return kind | ({"enum": list(self.values)} if self.closed else {})


@dataclass(frozen=True)
class Function:
    """A function that can be offered as a tool."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    asks: tuple[str, ...]
    """Questions with the parameters' names in braces."""
    gives: dict[str, Parameter]
    """What stands in the result besides the arguments' first."""

    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's shape."""
        properties = {name: parameter.schema() for name, parameter in self.parameters.items()}
        inner = {"type": "object", "properties": properties, "required": list(self.parameters)}
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": inner}}

    def combinations(self) -> int:
        """How many different calls there are."""
        n = 1
        for parameter in self.parameters.values():
            n *= len(parameter.values)
        return n


_CITY, _NAME, _FOOD, _ITEM = Parameter(tables.CITIES), Parameter(tables.NAMES), Parameter(tables.FOODS), Parameter(tables.ITEMS)
# Half of the countries and words: behind a quotation mark each is a token of its own, which must be frequent enough to be made.
_COUNTRY, _WORD = Parameter(tables.COUNTRIES[:16]), Parameter(tables.WORDS[::2])
_ROOM, _DAY, _HOUR = Parameter(tables.ROOMS), Parameter(tables.DAYS), Parameter(range(1, 25))
_MONEY = Parameter(tables.CURRENCIES)
_NUMBER = Parameter(range(1, 100))
_DONE = {"status": Parameter(("done",))}

FUNCTIONS = (
    Function("get_weather", "Weather in a city", {"city": _CITY},
             ("What is the weather in {city}?", "How is the weather in {city} today?", "Tell me the weather in {city}.",
              "Is it raining in {city}?",
              "Do I need a coat in {city}?", "Weather for {city}, please."),
             {"sky": Parameter(("sunny", "cloudy", "rainy")), "degrees": Parameter(range(5, 35))}),
    Function("get_time", "Local time in a city", {"city": _CITY},
             ("What time is it in {city}?", "Tell me the time in {city}.", "What does the clock say in {city}?",
              "Current time in {city}, please.",
              "How late is it in {city}?"),
             {"hour": _HOUR}),
    Function("get_news", "News on a topic", {"topic": Parameter(tables.TOPICS)},
             ("What is the news on {topic}?", "Show me the latest news about {topic}.", "Any news about {topic}?",
              "Read me the {topic} news.",
              "What happened in {topic} today?", "I want to hear the headlines on {topic}."),
             {"articles": Parameter(range(2, 20))}),
    Function("convert_currency", "Convert money", {"amount": _NUMBER, "source": _MONEY, "target": _MONEY},
             ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?",
              "What are {amount} {source} worth in {target}?",
              "Change {amount} {source} into {target}, please.", "I have {amount} {source}. How much is that in {target}?"),
             {"result": _NUMBER}),
    Function("set_timer", "Start a timer", {"minutes": _NUMBER},
             ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Count down {minutes} minutes.",
              "Tell me when {minutes} minutes are over.", "I need a timer for {minutes} minutes."),
             _DONE),
    Function("set_alarm", "Set an alarm", {"hour": _HOUR, "day": _DAY},
             ("Wake me up at {hour} on {day}.", "Set an alarm for {hour} on {day}.", "I have to get up at {hour} on {day}.",
              "On {day} let the alarm ring at {hour}.", "Please set the alarm to {hour} for {day}."),
             _DONE),
    Function("play_music", "Play music", {"genre": Parameter(tables.GENRES)},
             ("Play some {genre}.", "I want to hear {genre}.", "Put on {genre} music.", "Can you play {genre} for me?",
              "Let me listen to {genre} songs.",
              "Start some {genre} music, please."),
             {"songs": Parameter(range(5, 60))}),
    Function("translate_word", "Translate a word", {"word": _WORD, "language": Parameter(tables.LANGUAGES)},
             ("Translate {word} into {language}.", "How do you say {word} in {language}?", "What is {word} in {language}?",
              "What is the {language} word for {word}?", "I need the word {word} in {language}."),
             {"letters": Parameter(range(2, 12))}),
    Function("get_distance", "Distance between cities", {"origin": _CITY, "target": _CITY},
             ("How far is it from {origin} to {target}?", "What is the distance from {origin} to {target}?",
              "How many kilometers are between {origin} and {target}?",
              "Tell me how far {origin} is from {target}.", "Distance from {origin} to {target}, please."),
             {"kilometers": Parameter(range(100, 1000))}),
    Function("get_stock", "Price of a stock", {"company": Parameter(tables.COMPANIES)},
             ("What is the stock price of {company}?", "How much is a share of {company}?", "How is the {company} stock doing?",
              "Tell me the price of {company} shares.", "What does one {company} share cost?", "Look up the {company} stock."),
             {"price": _NUMBER}),
    Function("add_event", "Add to the calendar", {"title": Parameter(tables.EVENTS), "day": _DAY},
             ("Put {title} in my calendar for {day}.", "Add {title} to the calendar on {day}.", "I have {title} on {day}. Write it down.",
              "Plan {title} for {day}.", "On {day} I have {title}. Save it in the calendar."),
             _DONE),
    Function("send_email", "Send an email", {"to": _NAME, "subject": Parameter(tables.EVENTS)},
             ("Send an email to {to} about {subject}.", "Write {to} an email about {subject}.", "Email {to} about {subject}.",
              "Please mail {to} about {subject}.", "I want to write an email about {subject} to {to}."),
             _DONE),
    Function("find_restaurant", "Find a restaurant", {"food": _FOOD, "city": _CITY},
             ("Find a place for {food} in {city}.", "Where can I eat {food} in {city}?", "I want {food} in {city}. Where do I go?",
              "Show me restaurants with {food} in {city}.", "Which restaurant in {city} has {food}?"),
             {"stars": Parameter(range(1, 6))}),
    Function("find_flight", "Find a flight", {"origin": _CITY, "target": _CITY},
             ("Find a flight from {origin} to {target}.", "I want to fly from {origin} to {target}.",
              "Which planes go from {origin} to {target}?",
              "I need a plane ticket from {origin} to {target}.", "Look for flights from {origin} to {target}."),
             {"price": Parameter(range(40, 900))}),
    Function("tell_joke", "Tell a joke", {"about": Parameter(tables.JOBS)},
             ("Tell me a joke about a {about}.", "Make me laugh about a {about}.", "Do you know a joke about a {about}?",
              "Something funny about a {about}, please.", "I want to hear a joke about a {about}.", "Say something funny about a {about}."),
             {"joke": Parameter(("short", "long", "old"))}),
    Function("define_word", "Look up a word", {"word": _WORD},
             ("What does {word} mean?", "Define the word {word}.", "Look up {word} in the dictionary.", "What is the meaning of {word}?",
              "Explain the word {word}.", "Give me a definition of {word}."),
             {"kind": Parameter(("noun",))}),
    Function("switch_light", "Switch a light", {"room": _ROOM, "state": Parameter(("on", "off"), closed=True)},
             ("Turn {state} the light in the {room}.", "Switch the light in the {room} {state}.",
              "Please turn {state} the lamp in the {room}.",
              "I want the {room} light {state}.", "Light {state} in the {room}, please."),
             _DONE),
    Function("set_heating", "Set the heating", {"room": _ROOM, "degrees": Parameter(range(10, 31))},
             ("Heat the {room} to {degrees} degrees.", "Set the {room} to {degrees} degrees.", "I want {degrees} degrees in the {room}.",
              "Make it {degrees} degrees warm in the {room}.", "Let the heating in the {room} go to {degrees} degrees."),
             _DONE),
    Function("call_contact", "Call somebody", {"name": _NAME},
             ("Call {name}.", "Phone {name}, please.", "I want to talk to {name} on the phone.", "Give {name} a call.",
              "Ring up {name} for me.",
              "Can you call {name} now?"),
             _DONE),
    Function("buy_item", "Order in the shop", {"item": _ITEM, "count": _NUMBER},
             ("Buy the {item} {count} times.", "Order {count} pieces of the {item}.", "I need the {item} {count} times. Order it.",
              "Put the {item} in my cart, {count} times.", "Please order the {item}, {count} pieces."),
             {"price": _NUMBER}),
    Function("book_hotel", "Book a hotel", {"city": _CITY, "nights": Parameter(range(1, 15))},
             ("Book a hotel in {city} for {nights} nights.", "I need a room in {city} for {nights} nights.",
              "Find me a hotel for {nights} nights in {city}.",
              "I stay {nights} nights in {city}. Book a hotel.", "Reserve {nights} nights in a hotel in {city}."),
             {"price": Parameter(range(40, 900))}),
    Function("add_reminder", "Remind of a task", {"task": Parameter(tables.TASKS), "hour": _HOUR},
             ("Remind me to {task} at {hour}.", "At {hour} I have to {task}. Remind me.", "Do not let me forget to {task} at {hour}.",
              "Set a reminder to {task} at {hour}.", "I want a reminder at {hour} to {task}."),
             _DONE),
    Function("get_population", "People in a country", {"country": _COUNTRY},
             ("How many people live in {country}?", "What is the population of {country}?", "Tell me how many people {country} has.",
              "Population of {country}, please.", "How big is the population of {country}?"),
             {"millions": _NUMBER}),
    Function("random_number", "Draw a number", {"low": Parameter(range(1, 10)), "high": Parameter(range(10, 100))},
             ("Draw a number between {low} and {high}.", "Give me a random number from {low} to {high}.",
              "Pick a number between {low} and {high}.",
              "Choose any number from {low} to {high}.", "I need a random number between {low} and {high}."),
             {"number": _NUMBER}),
)  # fmt: skip
