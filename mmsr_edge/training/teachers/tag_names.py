"""Names of tags for ImageNet's thousand classes; related classes share a plain word.

ImageNet has 120 breeds of dogs and no class "dog". Prompts use the plain word, and a student
trained on few photographs cannot learn more.
"""

from __future__ import annotations

RANGES = {
    "fish": [(0, 6), (389, 397)], "bird": [(7, 24), (80, 100), (127, 146)],
    "frog": [(25, 32)], "turtle": [(33, 37)], "lizard": [(38, 50)], "snake": [(52, 68)],
    "spider": [(70, 79)], "jellyfish": [(107, 107)], "coral": [(108, 109), (973, 973)],
    "snail": [(110, 117)], "crab": [(118, 126)], "whale": [(147, 149)], "sea lion": [(150, 150)],
    "dog": [(151, 268)], "fox": [(269, 280)], "cat": [(281, 285)], "big cat": [(286, 293)],
    "bear": [(294, 297)], "insect": [(300, 320)], "butterfly": [(321, 326)],
    "starfish": [(327, 329)], "small mammal": [(298, 299), (330, 338), (356, 364)],
    "horse": [(339, 340)], "hoofed animal": [(341, 355)], "monkey": [(365, 384)],
    "elephant": [(101, 101), (385, 386)], "panda": [(387, 388)], "vegetable": [(936, 945)],
    "fruit": [(948, 957), (988, 990)], "mushroom": [(947, 947), (991, 997)],
}  # fmt: skip
"""Tags of ranges of classes (first, last), numbered as in ImageNet, from 0 without "background"."""
GROUPS = {
    "mountain": ("alp", "volcano"),
    "cliff": ("cliff", "promontory", "cliff dwelling"),
    "shore": ("seashore", "sandbar", "lakeside"),
    "pier": ("pier", "dock", "breakwater"),
    "boat": (
        "speedboat", "canoe", "catamaran", "trimaran", "fireboat", "lifeboat", "gondola",
        "schooner", "yawl", "container ship", "liner", "pirate", "submarine", "paddle", "wreck",
        "aircraft carrier",
    ),
    "bridge": ("suspension bridge", "steel arch bridge", "viaduct"),
    "lighthouse": ("beacon",),
    "building": (
        "church", "bell cote", "castle", "monastery", "palace", "mosque", "stupa", "dome", "vault",
        "planetarium", "library", "barn", "boathouse", "thatch", "tile roof", "greenhouse",
        "mobile home", "cinema", "restaurant", "bakery", "prison", "triumphal arch", "patio",
    ),
    "tower": ("water tower", "obelisk", "totem pole", "drilling platform", "maypole", "megalith"),
    "pole": ("pole", "flagpole"),
    "tent": ("mountain tent", "yurt"),
    "fence": ("picket fence", "worm fence", "chainlink fence", "stone wall", "bannister"),
    "flower": ("daisy", "yellow lady's slipper", "rapeseed", "vase", "pot", "pinwheel"),
    "grain": ("hay", "corn", "ear"),
    "car": (
        "beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer",
        "sports car", "car wheel", "car mirror", "grille", "pickup", "tow truck", "moving van",
        "trailer truck", "garbage truck", "police van", "ambulance", "minibus",
    ),
    "aircraft": ("airliner", "wing", "warplane", "space shuttle", "missile", "projectile"),
    "balloon": ("balloon", "parachute", "airship"),
    "aerial": ("radio telescope", "solar dish"),
    "screen": ("screen", "monitor", "television", "laptop", "desktop computer", "web site"),
    "keyboard": ("computer keyboard", "typewriter keyboard", "space bar", "mouse", "joystick"),
    "cup": ("cup", "coffee mug", "espresso", "teapot", "pitcher", "measuring cup"),
    "bottle": ("water bottle", "wine bottle", "beer bottle", "pop bottle", "pill bottle"),
    "glass": ("beer glass", "red wine", "goblet"),
    "lamp": ("lampshade", "table lamp", "spotlight", "candle", "torch", "jack-o'-lantern"),
    "ball": ("golf ball", "tennis ball", "ping-pong ball", "croquet ball", "volleyball"),
    "clock": ("analog clock", "wall clock", "digital clock", "sundial", "stopwatch"),
    "web": ("spider web",),
    "curtain": ("shower curtain", "theater curtain", "window shade", "mosquito net"),
    "grid": ("window screen", "radiator", "honeycomb", "maze"),
    "metal": ("nail", "screw", "hook", "chain", "safety pin", "coil", "electric fan"),
    "cloth": ("velvet", "wool", "quilt", "bath towel", "cloak", "poncho", "abaya", "doormat"),
}  # fmt: skip
"""Tags of classes, by the first name of the class."""


def tag_names(names: list[str]) -> list[str]:
    """Tags of the classes, in their order; several classes may have the same tag.

    Args:
        names: names of the teacher's 1001 classes, its "background" first.
    """
    words = {name: word for word, group in GROUPS.items() for name in group}
    tags = [words.get(name, name) for name in names]
    for word, ranges in RANGES.items():
        for first, last in ranges:
            tags[first + 1 : last + 2] = [word] * (last - first + 1)
    return tags
