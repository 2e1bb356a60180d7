"""What ``ask.py`` prints of one model: a table of its stages, and the rules that must hold."""

from __future__ import annotations

from typing import Any

IMAGE_SHARE = 0.25
"""Most that the vision part of a still image may take, of that of a video of 8 frames."""
ARITHMETIC_SHARE = 0.4
"""Least share of arithmetic in the vision time of a video for times to say what the work is."""


def table(name: str, row: dict[str, Any]) -> str:
    """One model's stages with their shares, and how far each is from its limit."""
    tokens = row["new tokens"]
    decoding = row["per token"] * tokens
    answer = row["preprocess"] + row["vision"] + row["prefill"] + decoding
    command = row["import"] + row["load"] + answer
    limit = row["limit per token"] * tokens if "limit per token" in row else None
    lines = [
        f"{name}  ({row['weights']:.0f} M weights, {row['dtype']}, {row['device']}; {row['frames']} frames of "
        f"{row['pixels']}x{row['pixels']}, {row['prompt tokens']} prompt tokens)",
        f"  {_rates(row)}shares: of a whole command, and of an answer once the model is loaded",
        f"  {'stage':<38}{'seconds':>10}{'command':>9}{'answer':>8}{'limit':>10}{'of limit':>10}",
    ]
    for stage, seconds, is_answer, bound in (
        ("import", row["import"], False, None),
        ("load", row["load"], False, None),
        ("preprocessing (decode, resize)", row["preprocess"], True, None),
        ("vision encoder", row["encoder"], True, None),
        ("connector", row["connector"], True, None),
        ("prefill, first token", row["prefill"], True, row.get("limit prefill")),
        (f"decoding, {tokens} more tokens", decoding, True, limit),
    ):
        lines.append(_line(stage, seconds, f"{seconds / command:.0%}", f"{seconds / answer:.0%}" * is_answer, bound))
    lines += [
        _line("encoder + connector", row["vision"], "", "", row.get("limit vision")),
        *_first_tokens("clip", row["first token"], row["second token"]),
        *(_first_tokens("sound", row["first of sound"], row["second of sound"]) if "first of sound" in row else ()),
        f"  {'tokens per second':<38}{1 / row['per token'] if row['per token'] > 0 else float('nan'):>10.1f}",
        f"  {'peak memory, GiB':<38}{row['memory']:>10.2f}",
    ]
    verdicts = {True: "ok", False: "BROKEN", None: "-"}
    return "\n".join(lines + [f"  {verdicts[is_met]:<7}{text}" for is_met, text in rules(row)])


def _rates(row: dict[str, Any]) -> str:
    if "rate" not in row:
        return ""
    return f"matrix product {row['rate']:.0f} GFLOP/s, copy {row['bandwidth']:.1f} GB/s; "


def _first_tokens(what: str, first: float, second: float) -> list[str]:
    return [
        _line(f"time to first token, new {what}", first),
        _line(f"time to first token, same {what} again", second),
        f"  {'  sooner than the first, times':<38}{first / second:>10.1f}",
    ]


def _line(stage: str, seconds: float, command: str = "", answer: str = "", limit: float | None = None) -> str:
    bound = "" if limit is None else f"{limit:>10.4f}{limit / seconds if seconds > 0 else float('nan'):>10.0%}"
    return f"  {stage:<38}{seconds:>10.4f}{command:>9}{answer:>8}{bound}".rstrip()


def rules(row: dict[str, Any]) -> list[tuple[bool | None, str]]:
    """What must hold, and what was measured of it; None where it cannot be judged."""
    second = row["frames second"]
    encoded = (
        second == 0,
        f"frames encoded: {row['frames first']}, for a second question about the clip {second} (none)",
    )
    return [encoded] if "limit vision" not in row else [*_image_rules(row), encoded]


def _image_rules(row: dict[str, Any]) -> list[tuple[bool | None, str]]:
    video = f"of a video's, {row['frames']} frames (of 8: at most {IMAGE_SHARE})"
    share = row["image vision"] / row["vision"]
    is_arithmetic = row["limit vision"] >= ARITHMETIC_SHARE * row["vision"]
    is_met, time_text = share <= IMAGE_SHARE, f"vision time of a still image: {share:.2f} {video}"
    if not is_arithmetic:
        is_met = None
        time_text += f"; not judged, {1 - row['limit vision'] / row['vision']:.0%} of the video's is no arithmetic"
    return [
        (row["image work"] <= IMAGE_SHARE, f"vision work of a still image: {row['image work']:.2f} {video}"),
        (is_met, time_text),
    ]
