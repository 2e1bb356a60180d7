"""Defines the style of the page: the system's own fonts, one accent colour, and a light and a dark mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def page_theme() -> Any:
    """Return the Gradio theme. It only names fonts, so nothing has to be fetched to draw the page."""
    from gradio import themes

    theme = themes.Base(
        primary_hue=themes.colors.indigo,
        secondary_hue=themes.colors.indigo,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_lg,
        font=_SANS,
        font_mono=_MONO,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_radius="14px",
        container_radius="14px",
        input_radius="10px",
        block_label_text_size="*text_sm",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_500",
    )


def page_css() -> str:
    """Return the style sheet that complements the theme."""
    return (Path(__file__).resolve().parents[2] / "assets" / "page" / "page.css").read_text(encoding="utf-8")
