"""``--help``: this program's flags first, in groups; everything by ``--help_all``."""

from dataclasses import fields

import pytest
import transformers

from videollama2 import train
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments
from videollama2.training.flags.help import FOLDED, GROUPS


def told(capsys, flag: str) -> str:
    with pytest.raises(SystemExit) as end:
        train.main([flag])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_own_flags_come_first_in_groups(capsys):
    text = told(capsys, "--help")
    lines = text.splitlines()
    assert len(lines) < 150 and max(map(len, lines)) <= 120
    own = {f.name for kind in (ModelArguments, DataArguments) for f in fields(kind)}
    own |= {f.name for f in fields(TrainingArguments)} - {f.name for f in fields(transformers.TrainingArguments)}
    begin, _, others = text.partition("other flags of transformers")
    for name in own:
        assert sum(name in names for names in (*GROUPS.values(), FOLDED)) == 1, name
        assert f"  --{name} " in begin or (name in FOLDED and f"--{name}" in begin.split())
    places = [begin.index(f"{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    # Nothing is hidden: the rest is named.
    for field in fields(TrainingArguments):
        assert not field.init or f"--{field.name}" in begin or f"--{field.name}" in others, field.name


def test_every_flag_is_described_by_help_all(capsys):
    text = told(capsys, "--help_all")
    for field in fields(TrainingArguments):
        assert not field.init or f"  --{field.name}" in text, field.name
