"""The facts and words that Pebble's corpus is made of: plain tables, written for it. Knows nothing of rows or splits.

Values are shared between skills on purpose (the cities of the function calls are the capitals of the facts), because a
small vocabulary of whole words is what lets a model of a million parameters learn to copy them.
"""

from __future__ import annotations

# country, capital
CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"), ("Austria", "Vienna"), ("Greece", "Athens"),
    ("Portugal", "Lisbon"), ("Poland", "Warsaw"), ("Hungary", "Budapest"), ("Sweden", "Stockholm"), ("Norway", "Oslo"), ("Finland",
     "Helsinki"),
    ("Denmark", "Copenhagen"), ("Ireland", "Dublin"), ("Belgium", "Brussels"), ("Japan", "Tokyo"), ("South Korea", "Seoul"), ("China",
     "Beijing"),
    ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"), ("India", "New Delhi"), ("Nepal", "Kathmandu"), ("Egypt", "Cairo"), ("Kenya", "Nairobi"),
    ("Morocco", "Rabat"), ("Ghana", "Accra"), ("Peru", "Lima"), ("Cuba", "Havana"), ("Chile", "Santiago"), ("Canada", "Ottawa"),
    ("Russia", "Moscow"), ("Turkey", "Ankara"), ("Jordan", "Amman"), ("Australia", "Canberra"),
)  # fmt: skip
# element, symbol
SYMBOLS = (
    ("gold", "Au"), ("silver", "Ag"), ("iron", "Fe"), ("copper", "Cu"), ("lead", "Pb"), ("tin", "Sn"), ("helium", "He"), ("carbon", "C"),
    ("oxygen", "O"), ("sodium", "Na"), ("neon", "Ne"), ("zinc", "Zn"), ("calcium", "Ca"), ("mercury", "Hg"),
)  # fmt: skip
# animal, its young
YOUNG = (
    ("cat", "kitten"), ("dog", "puppy"), ("cow", "calf"), ("horse", "foal"), ("sheep", "lamb"), ("goat", "kid"), ("pig", "piglet"),
    ("duck", "duckling"), ("goose", "gosling"), ("kangaroo", "joey"), ("deer", "fawn"), ("bear", "cub"), ("frog", "tadpole"), ("swan",
     "cygnet"),
)  # fmt: skip
# book, poem or play, and the author whose best known work it is
AUTHORS = (
    ("Hamlet", "William Shakespeare"), ("Don Quixote", "Miguel de Cervantes"), ("Faust", "Goethe"), ("War and Peace", "Leo Tolstoy"),
    ("Pride and Prejudice", "Jane Austen"), ("Moby Dick", "Herman Melville"), ("Dracula", "Bram Stoker"), ("Frankenstein", "Mary Shelley"),
    ("Candide", "Voltaire"), ("The Divine Comedy", "Dante"),
)  # fmt: skip
# invention, inventor
INVENTORS = (
    ("the telephone", "Alexander Graham Bell"), ("dynamite", "Alfred Nobel"), ("the diesel engine", "Rudolf Diesel"),
    ("the electric battery", "Alessandro Volta"), ("the World Wide Web", "Tim Berners-Lee"), ("the saxophone", "Adolphe Sax"),
    ("basketball", "James Naismith"), ("the cotton gin", "Eli Whitney"),
)  # fmt: skip
# country, its money
MONEY = (
    ("Japan", "yen"), ("Poland", "zloty"), ("Thailand", "baht"), ("Vietnam", "dong"), ("Hungary", "forint"), ("Brazil", "real"),
    ("China", "yuan"), ("Turkey", "lira"), ("Israel", "shekel"), ("South Africa", "rand"),
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("full", "empty"), ("wet", "dry"), ("happy", "sad"),
    ("early", "late"), ("strong", "weak"), ("rich", "poor"), ("near", "far"), ("loud", "quiet"),
)  # fmt: skip
# planet, its place counted from the sun
PLANETS = (
    ("Mercury", "first"), ("Venus", "second"), ("Earth", "third"), ("Mars", "fourth"), ("Jupiter", "fifth"), ("Saturn", "sixth"),
    ("Uranus", "seventh"), ("Neptune", "eighth"),
)  # fmt: skip

CITIES = tuple(capital for _, capital in CAPITALS)
COUNTRIES = tuple(country for country, _ in CAPITALS)
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emil", "Fatima", "George", "Hana", "Ivan", "Julia", "Karim", "Laura", "Maria", "Nina", "Omar",
    "Paul", "Rosa", "Sam", "Tom", "Yuki",
)  # fmt: skip
WORDS = (
    "apple", "bread", "chair", "cloud", "door", "egg", "fish", "flower", "garden", "glass", "hat", "house", "island", "key", "lamp",
    "leaf", "lemon", "moon", "mountain", "music", "night", "ocean", "paper", "pen", "plate", "rain", "river", "road", "salt", "ship",
    "shoe", "snow", "star", "stone", "sugar", "table", "tree", "train", "water", "window",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple")
JOBS = ("baker", "doctor", "farmer", "painter", "pilot", "singer", "teacher", "writer")
FOODS = ("bread", "fish", "soup", "rice", "cake", "pizza", "salad", "noodles")
TOPICS = ("science", "sports", "politics", "health", "art", "travel", "music", "space")
GENRES = ("jazz", "rock", "folk", "pop", "opera", "blues")
CURRENCIES = ("dollars", "euros", "yen", "won", "pounds", "francs", "pesos", "rupees")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Korean", "Japanese")
# Companies are named like the planets: eight words fewer to learn.
COMPANIES = tuple(planet for planet, _ in PLANETS)
ROOMS = ("kitchen", "bedroom", "bathroom", "office", "garage", "hall")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
EVENTS = ("dinner", "lunch", "yoga", "football", "a meeting", "a party", "a haircut", "a concert")
TASKS = ("water the plants", "feed the cat", "pay the rent", "buy milk", "walk the dog", "call the bank", "clean the car", "take a break")
ITEMS = ("lamp", "chair", "table", "hat", "pen", "plate", "shoe", "key", "glass", "ship")
# ways to say it, and the answer
SMALL_TALK = (
    (("Hello!", "Hi!", "Hi there!", "Good morning!", "Hey!", "Hello, Pebble!"), "Hello! How can I help you?"),
    (("Thanks!", "Thank you.", "Thank you very much!", "Great, thanks.", "That helped, thank you."), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you later.", "Good night!", "I have to go now."), "Goodbye!"),
    (("How are you?", "How are you today?", "Is all well with you?", "Are you well?"), "I am well, thank you. How can I help you?"),
    (("You are great!", "Well done!", "Good job!", "You are very good at this."), "Thank you, that is kind!"),
    (("I am sad.", "I had a bad day.", "I feel bad today."), "I am sorry to hear that. I hope it gets better soon."),
)
