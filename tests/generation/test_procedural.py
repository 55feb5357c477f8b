"""The painting generator: the same wish gives the same picture, other words another, and nobody waits for it."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.errors import GenerationError
from server.generation.generator import SIZES, GenerationRequest, Generator, Picture, Step, hold_to_contract
from server.generation.paint import palettes, prompts, scenes
from server.generation.paint.canvas import Guide
from server.generation.procedural import ProceduralGenerator

SCENE_PROMPTS = {
    "mountains": "mountains at dawn",
    "sea": "moon over the sea",
    "city": "城市 夜",
    "forest": "forest in the snow",
    "desert": "desert dunes in the rain",
    "cosmos": "a galaxy",
    "flower": "a red flower",
    "flow": "abstract silk",
}


def wish(prompt: str = "sunset over the sea", **changes: Any) -> GenerationRequest:
    return replace(GenerationRequest("task", "basic", prompt, 7, (96, 64), None), **changes)


def reference(colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> bytes:
    """Return a PNG that is one colour above and a darker tone of it below."""
    image = Image.new("RGB", size, colour)
    image.paste(tuple(channel // 3 for channel in colour), (0, size[1] // 2, *size))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def pixels(content: bytes) -> npt.NDArray[np.float32]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.float32)


class CountingExecutor(Executor):
    """Hands work on to threads, and remembers all of it."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self.threads.submit(fn, *args, **kwargs)
        self.futures.append(future)
        return future


@pytest.fixture(name="executor")
def _executor() -> Iterator[CountingExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield CountingExecutor(threads)


@pytest.fixture(name="generator")
def _generator(executor: CountingExecutor) -> Generator:
    return ProceduralGenerator(0, executor)


async def paint(generator: Generator, request: GenerationRequest) -> bytes:
    pieces = [piece async for piece in hold_to_contract(generator.generate(request))]
    assert isinstance(pieces[-1], Picture)
    return pieces[-1].content


async def fail(generator: Generator, request: GenerationRequest) -> tuple[list[Step | Picture], GenerationError]:
    pieces: list[Step | Picture] = []
    try:
        async for piece in generator.generate(request):
            pieces.append(piece)  # noqa: PERF401 - a comprehension would lose them with the error
    except GenerationError as error:
        return pieces, error
    raise AssertionError("nothing failed")


async def test_five_steps_of_growing_progress_then_one_picture(generator: Generator) -> None:
    pieces = [piece async for piece in generator.generate(wish())]
    steps = [piece for piece in pieces if isinstance(piece, Step)]
    assert len(steps) == 5
    assert [step.progress for step in steps] == sorted({step.progress for step in steps})
    assert 0.0 <= steps[0].progress <= steps[-1].progress <= 1.0
    assert all(step.stage and step.message.endswith(".") for step in steps)
    assert isinstance(pieces[-1], Picture)
    assert len(pieces) == 6


async def test_the_picture_is_a_png_of_the_asked_size_without_metadata(generator: Generator) -> None:
    pieces = [piece async for piece in generator.generate(wish())]
    assert isinstance(pieces[-1], Picture)
    image = Image.open(io.BytesIO(pieces[-1].content))
    assert (image.format, image.size) == ("PNG", (96, 64))
    assert not image.info


@pytest.mark.parametrize("prompt", SCENE_PROMPTS.values())
async def test_the_same_request_gives_the_same_bytes(generator: Generator, prompt: str) -> None:
    request = wish(prompt)
    assert await paint(generator, request) == await paint(generator, replace(request, task_id="another"))


async def test_pictures_made_at_the_same_time_do_not_disturb_each_other(executor: CountingExecutor) -> None:
    requests = [wish(prompt) for prompt in SCENE_PROMPTS.values()]
    alone = [await paint(ProceduralGenerator(0, executor), request) for request in requests]
    with ThreadPoolExecutor(4) as threads:
        generator = ProceduralGenerator(0, threads)
        together = await asyncio.gather(*(paint(generator, request) for request in requests))
    assert together == alone


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "sunset over the seas"},
        {"seed": 8},
        {"type": "advanced"},
        {"size": (64, 96)},
        {"reference": reference((200, 40, 40))},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_whatever_is_asked_changes_the_picture(generator: Generator, changes: dict[str, Any]) -> None:
    assert await paint(generator, wish()) != await paint(generator, wish(**changes))


async def test_another_seed_is_another_composition_not_only_other_grain(generator: Generator) -> None:
    first, second = [pixels(await paint(generator, wish("blue mountains", seed=seed))) for seed in (1, 2)]
    assert np.abs(first - second).mean() > 5


async def test_extreme_prompts_and_seeds_are_painted(generator: Generator) -> None:
    for prompt in ("x", "山" * 4000, "\ud800 lone", "🙂🙂", "{}%s\\n"):
        assert await paint(generator, wish(prompt, seed=2**63 - 1, size=(32, 32)))


def test_the_prompts_of_these_tests_reach_every_scene() -> None:
    assert {name: prompts.read_prompt(prompt).scene for name, prompt in SCENE_PROMPTS.items()} == {
        name: name for name in scenes.SCENES
    }
    assert set(prompts.SCENES) == set(scenes.SCENES)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("prompt", SCENE_PROMPTS.values(), ids=SCENE_PROMPTS)
async def test_every_scene_fills_every_size(generator: Generator, prompt: str, size: tuple[int, int]) -> None:
    small = size[0] // 8, size[1] // 8
    found = pixels(await paint(generator, wish(prompt, size=small)))
    assert found.shape == (small[1], small[0], 3)
    assert found.std() > 8


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
async def test_the_sizes_are_painted_in_full(generator: Generator, size: tuple[int, int]) -> None:
    assert pixels(await paint(generator, wish("mountains", size=size))).shape == (size[1], size[0], 3)


async def test_scenes_look_different(generator: Generator) -> None:
    found = [pixels(await paint(generator, wish(f"blue {prompt}"))) for prompt in SCENE_PROMPTS.values()]
    gaps = [np.abs(first - second).mean() for place, first in enumerate(found) for second in found[:place]]
    assert min(gaps) > 8


@pytest.mark.parametrize(("word", "channel"), [("red", 0), ("红", 0), ("green", 1), ("blue", 2), ("蓝", 2)])
async def test_a_named_colour_rules_the_picture(generator: Generator, word: str, channel: int) -> None:
    mean = pixels(await paint(generator, wish(f"{word} abstract"))).mean(axis=(0, 1))
    assert mean.argmax() == channel


async def test_night_is_darker_than_day(generator: Generator) -> None:
    night, day = [pixels(await paint(generator, wish(f"the sea by {time}"))).mean() for time in ("night", "day")]
    assert night < 0.6 * day


@pytest.mark.parametrize(
    ("prompt", "scene", "time"),
    [
        ("A moonlit lake", "sea", "night"),
        ("月光下的海", "sea", "night"),
        ("上海 日落", "city", "sunset"),
        ("雪山", "mountains", ""),
        ("two foxes at dawn", "forest", "dawn"),
        ("a dream of the desert", "desert", ""),
        ("aurora", None, "night"),
        ("flowers and stars", "flower", "night"),
    ],
)
def test_words_choose_scene_and_time(prompt: str, scene: str | None, time: str) -> None:
    reading = prompts.read_prompt(prompt)
    assert reading.scene == scene or scene is None
    assert reading.time == time
    assert reading.known


def test_unknown_words_choose_among_all_scenes_and_always_the_same() -> None:
    readings = [prompts.read_prompt(f"qwzx {number}") for number in range(200)]
    assert {reading.scene for reading in readings} == set(scenes.SCENES)
    assert readings == [prompts.read_prompt(f"qwzx {number}") for number in range(200)]
    assert not any(reading.known for reading in readings)


COLOURS = [(230, 60, 40), (40, 180, 70), (50, 80, 220), (240, 220, 60)]


@pytest.mark.parametrize("prompt", ["mountains", "city", "flower", "something else"])
async def test_the_picture_takes_its_colours_from_the_reference(generator: Generator, prompt: str) -> None:
    means = []
    for colour in COLOURS:
        request = wish(prompt, type="advanced", reference=reference(colour))
        means.append(pixels(await paint(generator, request)).mean(axis=(0, 1)))
    own = [pixels(reference(colour)).mean(axis=(0, 1)) for colour in COLOURS]
    for place, mean in enumerate(means):
        distances = [float(np.linalg.norm(mean - wanted)) for wanted in own]
        assert distances[place] == min(distances)


async def test_the_picture_takes_its_light_and_dark_from_the_reference(generator: Generator) -> None:
    wide = np.linspace(20, 235, 64).astype(np.uint8)[None, :, None].repeat(48, axis=0).repeat(3, axis=2)
    halves = []
    for pixel in (wide, wide[:, ::-1]):
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixel)).save(written, "PNG")
        found = pixels(await paint(generator, wish("odd thing", type="advanced", reference=written.getvalue())))
        halves.append(found[:, 48:].mean() - found[:, :48].mean())
    assert halves[0] > 20
    assert halves[1] < -20


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_reference_of_one_colour_is_no_trouble(mode: str) -> None:
    written = io.BytesIO()
    Image.new(mode, (1, 1)).save(written, "PNG")
    guide = Guide.of(written.getvalue(), 96, 64)
    assert np.isfinite(guide.lightness).all()
    assert np.isfinite(guide.skyline()).all()
    assert guide.lightness.shape == (64, 96)
    assert palettes.palette_of_reference(guide.sample).shade(guide.lightness).shape == (64, 96, 3)


def test_oklab_there_and_back_again() -> None:
    colours = np.random.default_rng(1).random((100, 3), dtype=np.float32)
    light = palettes.linear_from_srgb(colours)
    assert np.allclose(palettes.srgb_from_linear(light), colours, atol=1e-4)
    assert np.allclose(palettes.linear_from_oklab(palettes.oklab_from_linear(light)), light, atol=1e-3)


def test_every_palette_grows_from_dark_to_light() -> None:
    groups = [palettes.CHOICE, *palettes.MOODS.values(), *palettes.SUBJECTS.values()]
    for palette in (palettes.Palette.from_codes(codes) for codes in sum(groups, ())):
        assert (np.diff(palette.stops[:, 0]) > 0).all()


async def test_the_rehearsed_failure_comes_at_the_third_step_and_is_final(generator: Generator) -> None:
    steps, error = await fail(generator, wish("sea [fail]"))
    assert len(steps) == 3
    assert not error.retryable


async def test_the_rehearsed_hiccup_comes_at_the_second_step_and_may_be_retried(generator: Generator) -> None:
    steps, error = await fail(generator, wish("sea [flaky]"))
    assert len(steps) == 2
    assert error.retryable


async def test_nothing_is_computed_before_it_is_read(generator: Generator, executor: CountingExecutor) -> None:
    pieces = generator.generate(wish())
    await anext(pieces)
    assert not executor.futures
    await pieces.aclose()


async def test_closing_between_steps_leaves_no_work_behind(generator: Generator, executor: CountingExecutor) -> None:
    pieces = generator.generate(wish())
    for _ in range(3):
        await anext(pieces)
    await pieces.aclose()
    assert len(executor.futures) == 2
    assert all(future.done() for future in executor.futures)
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_canceling_within_a_step_ends_it_and_starts_no_other() -> None:
    started: list[Future[Any]] = []
    submitted = asyncio.Event()

    class NeverReady(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
            started.append(Future())
            submitted.set()
            return started[-1]

    pieces = ProceduralGenerator(0, NeverReady()).generate(wish())
    await anext(pieces)
    reading = asyncio.ensure_future(anext(pieces))
    await submitted.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert len(started) == 1
    assert started[0].cancelled()


async def test_everything_is_computed_in_the_executor_and_the_loop_keeps_turning(executor: CountingExecutor) -> None:
    turns, finished = 0, False

    async def count() -> None:
        nonlocal turns
        while not finished:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    turns_at_piece = []
    async for _ in ProceduralGenerator(0, executor).generate(wish(size=(512, 512))):
        turns_at_piece.append(turns)  # noqa: PERF401 - read as a loop: each turn of it is what counts
    finished = True
    await counting
    assert len(executor.futures) == 5
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(turns_at_piece))


async def test_each_step_lasts_as_long_as_configured(
    executor: CountingExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr("server.generation.procedural.asyncio.sleep", rest)
    async for _ in ProceduralGenerator(1000.0, executor).generate(wish()):
        pass
    assert len(rests) == 5
    assert all(900.0 < seconds <= 1000.0 for seconds in rests)
