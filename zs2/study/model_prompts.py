"""The prompts of the authors' page for the models that it shows, by the models' ids on the hub. No torch here.

From the names of the clips in https://github.com/densechen/zss (video/more_results), 14 a model.
"""

from __future__ import annotations

from zs2.checkpoints.hub import SHORT_NAMES, WITHDRAWN
from zs2.study.prompts import Prompt

PROMPTS = {
    "CompVis/stable-diffusion-v1-4": (
        "A horse galloping on a street",
        "A video is showcasing the beauty of nature, from mountains and waterfalls to forests and oceans",
        "An aerial view is showing a white sandy beach on the shore of a beautiful sea",
        "An animated painting is showing fluffy white clouds moving in the sky",
        "An astronaut is flying in space",
        "There is a flying through an intense battle between pirate ships in a stormy ocean",
        "There is a time-lapse of the snow land with aurora in the sky",
        "a DSLR photo of a red pickup truck driving across a stream",
        "a DSLR photo of a steaming hot plate piled high with spaghetti and meatballs",
        "a DSLR photo of an adorable piglet in a field",
        "a DSLR photo of an extravagant mansion, aerial view",
        "a beagle in a detective's outfit",
        "a bumblebee sitting on a pink flower",
        "a completely destroyed car",
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (
        "A turtle is swimming in the ocean",
        "A waterfall flowing through glacier at night",
        "a DSLR photo of a bunny, riding a broomstick",
        "a DSLR photo of a chow chow puppy",
        "a DSLR photo of a goose made out of gold",
        "a DSLR photo of a red convertible car with the top down",
        "a DSLR photo of a tiger dressed as a doctor",
        "a DSLR photo of an unstable rock cairn in the middle of a stream",
        "a bumblebee sitting on a pink flower",
        "a cat with a mullet",
        "a ficus planted in a pot",
        "a zoomed out DSLR photo of a blue tulip",
        "a zoomed out DSLR photo of a chihuahua lying in a pool ring",
        "a zoomed out DSLR photo of a majestic sailboat",
    ),
    "dreamlike-art/dreamlike-photoreal-1.0": (
        "A Bigfoot is walking in a snowstorm",
        "A bear dancing on times square",
        "A beautiful girl",
        "A horse is galloping through Van Goghs Starry Night",
        "A teddy bear is walking down 5th Avenue, front view, beautiful sunset, close up",
        "There is a bird's-eye view of a highway in Los Angeles",
        "There is a time-lapse of the snow land with aurora in the sky",
        "a DSLR photo of a lion reading the newspaper",
        "a DSLR photo of a sheepdog running",
        "a DSLR photo of a squirrel, wearing a leather jacket, riding a motorcycle, on a road made of ice",
        "a DSLR photo of an unstable rock cairn in the middle of a stream",
        "a brightly colored mushroom growing on a log",
        "a bumblebee sitting on a pink flower",
        "a zoomed out DSLR photo of a majestic sailboat",
    ),
    "dreamlike-art/dreamlike-photoreal-2.0": (
        "A koala bear is playing piano in the forest",
        "A man is riding a bicycle in the sunshine",
        "a DSLR photo of a classic Packard car",
        "a DSLR photo of a knight chopping wood",
        "a DSLR photo of a lion reading the newspaper",
        "a DSLR photo of a pirate collie dog, high resolution",
        "a DSLR photo of a red convertible car with the top down",
        "a DSLR photo of a red pickup truck driving across a stream",
        "a DSLR photo of a robot tiger",
        "a DSLR photo of a yorkie dog eating a donut",
        "a DSLR photo of an adorable piglet in a field",
        "a DSLR photo of cat, riding a motorcycle",
        "a bumblebee sitting on a pink flower",
        "a zoomed out DSLR photo of a toad catching a fly with its tongue",
    ),
    "prompthero/openjourney": (
        "A shiny golden waterfall is flowing through a glacier at night",
        "A teddy bear is walking down 5th Avenue, front view, beautiful sunset, close up",
        "A video is showcasing the beauty of nature, from mountains and waterfalls to forests and oceans",
        "An animated painting is showing fluffy white clouds moving in the sky",
        "There is a time-lapse of a fantasy landscape",
        "There is a time-lapse of the snow land with aurora in the sky",
        "Yellow flowers are swaying in the wind",
        "a DSLR photo of a lion reading the newspaper",
        "a DSLR photo of a small cherry tomato plant in a pot with a few red tomatoes growing on it",
        "a DSLR photo of a teapot shaped like an elephant head where its snout acts as the spout",
        "a ficus planted in a pot",
        "a monkey-rabbit hybrid",
        "a zoomed out DSLR photo of a blue lobster",
        "a zoomed out DSLR photo of a chihuahua lying in a pool ring",
    ),
}
# Text2Video-Zero's, which the paper uses to compare with it.
SHARED = (
    "A cat is running on the grass.",
    "An astronaut is skiing down the hill.",
    "A horse galloping on a street.",
)


SHORT = {hub_id: name for name, (hub_id, _) in SHORT_NAMES.items()}
MODELS = [SHORT.get(hub_id, hub_id) for hub_id in PROMPTS]  # as a command names them


def of_model(model: str) -> tuple[str, ...]:
    """The authors' prompts for a model, by its short name or its id; empty for one that their page does not show."""
    name = model.partition("@")[0]
    name = SHORT_NAMES[name][0] if name in SHORT_NAMES else WITHDRAWN.get(name, name)
    return next((prompts for known, prompts in PROMPTS.items() if known.lower() == name.lower()), ())


def reproduced(model: str, usual: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The prompts of `reproduce` for a model without prompts of its own: the shared ones, and then the authors' for
    this model, or the usual ones."""
    return (*map(Prompt, SHARED), *(tuple(map(Prompt, of_model(model))) or usual))
