"""What a prompt asks for: which scene, which time of day, which colours, what else is to be seen.

English words and Chinese characters are known. A prompt that says nothing known still means something: its letters
choose a scene and a palette, always the same for the same prompt.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

SCENES: tuple[str, ...] = ("mountains", "sea", "city", "forest", "desert", "cosmos", "flower", "flow")
"""Every scene there is."""

_SCENE_WORDS: dict[str, str] = {
    "mountains": "mountain hill peak alps cliff valley volcano range summit 山 峰 岭 峡谷 火山 雪山",
    "sea": "sea ocean lake beach wave coast water island harbor harbour shore river ship boat 海 洋 湖 海浪 浪"
    " 岛 江 河 水 船",
    "city": "city town skyline street tower building skyscraper downtown cyberpunk neon tokyo shanghai york 城 城市 街"
    " 楼 都市 上海 北京 霓虹 赛博朋克",
    "forest": "forest tree wood jungle pine grove park fox deer wolf 森林 树 林 竹 松 狐 鹿",
    "desert": "desert dune sand sahara camel oasis 沙漠 沙 沙丘 骆驼 戈壁",
    "cosmos": "space galaxy nebula cosmos universe planet comet astronaut rocket milky 宇宙 银河 星云 太空"
    " 行星 宇航员 星系",
    "flower": "flower rose lotus tulip blossom petal garden bloom dahlia peony lily sakura mandala 花 莲 玫瑰 牡丹"
    " 樱花 花园 荷花 菊",
    "flow": "abstract flow marble silk dream smoke fluid pattern texture music energy 抽象 流 梦 丝绸 烟 大理石 音乐",
}
_TIME_WORDS: dict[str, str] = {
    "dawn": "dawn sunrise morning daybreak spring 黎明 清晨 早晨 日出 晨 晓 春",
    "day": "day noon sunny summer bright afternoon 白天 正午 晴 夏 阳光 午后",
    "sunset": "sunset dusk evening twilight autumn 日落 黄昏 夕阳 傍晚 晚霞 秋",
    "night": "night midnight dark moonlight moonlit nocturne 夜 夜晚 午夜 深夜 月光 黑暗",
    "storm": "storm thunder tempest gloomy 暴风 风暴 雷 阴 暴雨",
}
_FEATURE_WORDS: dict[str, str] = {
    "sun": "sun sunshine sunny sunrise sunset 太阳 日出 日落 夕阳 阳光",
    "moon": "moon moonlight moonlit lunar 月 月亮 月光 明月",
    "stars": "star starry stars constellation 星 星空 繁星",
    "aurora": "aurora borealis polar 极光",
    "rain": "rain rainy drizzle storm tempest 雨 下雨 暴雨",
    "snow": "snow snowy snowfall winter blizzard 雪 雪山 下雪 飘雪 大雪 冬",
    "snowfall": "snowfall snowing blizzard 下雪 飘雪 大雪",
    "mist": "mist fog foggy misty haze cloudy 雾 烟雨 云海",
}
_COLOUR_WORDS: dict[str, str] = {
    "c8102e": "red crimson scarlet ruby 红",
    "f0743a": "orange tangerine 橙 橘",
    "e3b23c": "gold golden amber honey 金",
    "f2cf3b": "yellow lemon 黄",
    "3f8f4f": "green emerald jade 绿 翠",
    "2a9d9a": "teal turquoise cyan 青 碧",
    "2f63c0": "blue azure sapphire cobalt 蓝",
    "243b82": "indigo navy 靛",
    "7b3fb5": "purple violet 紫",
    "b79ae0": "lavender lilac 薰衣草",
    "d63f9b": "magenta fuchsia neon cyberpunk 品红 霓虹 赛博朋克",
    "f09bb5": "pink 粉",
    "8a5a36": "brown bronze copper 棕 褐 铜",
    "b8bfc9": "silver gray grey 银 灰",
    "eceff2": "white ivory pearl 白",
    "22252d": "black ebony 黑 墨",
}
_WITH_SKY = ("mountains", "sea", "desert", "forest", "mountains", "sea", "city")
_NIGHTLY = {"moon", "stars", "aurora"}


def _by_word(groups: dict[str, str]) -> dict[str, str]:
    return {word: group for group, words in groups.items() for word in words.split()}


_SCENE_OF, _TIME_OF, _FEATURE_OF, _COLOUR_OF = map(_by_word, (_SCENE_WORDS, _TIME_WORDS, _FEATURE_WORDS, _COLOUR_WORDS))
_KNOWN = {*_SCENE_OF, *_TIME_OF, *_FEATURE_OF, *_COLOUR_OF}
# Longest first, so that 上海 is a city and not the sea
_CHINESE = "|".join(sorted((word for word in _KNOWN if not word.isascii()), key=lambda word: (-len(word), word)))
_WORD = re.compile(rf"[a-z]+|{_CHINESE}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was understood of a prompt.

    Attributes:
        scene: one of `SCENES`.
        time: "dawn", "day", "sunset", "night", "storm", or "" when nothing tells.
        colours: sRGB codes in the order they were named.
        features: any of "sun", "moon", "stars", "aurora", "rain", "snow", "snowfall", "mist".
        known: whether a scene or a feature was named, instead of chosen by the prompt's letters.
    """

    scene: str
    time: str
    colours: tuple[str, ...]
    features: frozenset[str]
    known: bool


def read_prompt(prompt: str) -> Reading:
    """Understand what can be understood of a prompt; the same prompt is always understood the same."""
    words = [_singular(word) for word in _WORD.findall(prompt.lower())]
    scenes = _found(words, _SCENE_OF)
    times = _found(words, _TIME_OF)
    features = frozenset(_found(words, _FEATURE_OF))
    scenes.sort(key="flow".__eq__)  # "a dream of the sea" is the sea
    scene = scenes[0] if scenes else _scene_without_a_name(prompt, features, outdoors=bool(times or features))
    time = times[0] if times else _time_of(features, scene)
    return Reading(scene, time, tuple(_found(words, _COLOUR_OF))[:4], features, bool(scenes or features))


def _found(words: list[str], meaning: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(meaning[word] for word in words if word in meaning))


def _singular(word: str) -> str:
    for ending, rest in (("ies", "y"), ("es", ""), ("s", ""), ("y", ""), ("ed", "")):
        if word not in _KNOWN and word.endswith(ending) and word.removesuffix(ending) + rest in _KNOWN:
            return word.removesuffix(ending) + rest
    return word


def _time_of(features: frozenset[str], scene: str) -> str:
    if features & _NIGHTLY or (scene == "city" and "rain" in features):
        return "night"
    return "storm" if "rain" in features else ""


def _scene_without_a_name(prompt: str, features: frozenset[str], *, outdoors: bool) -> str:
    if features == {"stars"}:
        return "cosmos"
    choice = _WITH_SKY if outdoors else SCENES
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return choice[int.from_bytes(digest[:4], "big") % len(choice)]
