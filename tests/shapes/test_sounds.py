"""The built-in world with sound: soundtracks, checked against the samples that a written file gives back."""

import json
import random
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from tests.shapes.helpers import assert_balanced
from videollama2.errors import DataError
from videollama2.media.audio import NO_TRACK, ClipRules, read_video_sound
from videollama2.shapes.encoding import encode_video
from videollama2.shapes.pretrain_hearing import SOUND_FORMS, audio_config, moment_words
from videollama2.shapes.questions import NUMBERS
from videollama2.shapes.scene import FPS, SHAPES, SLIDE_FRAMES, make_scene, render_scene
from videollama2.shapes.sets import main, write_set
from videollama2.shapes.sound_questions import HEARD_TYPES, TRAINING_TYPES, sound_questions, training_questions
from videollama2.shapes.sounds import (
    EARLY_CHANGE,
    RATE,
    SECONDS,
    SHAPE_TONES,
    STORIES,
    TONES,
    SoundEvent,
    Soundtrack,
    add_sound,
    wave,
)

SOUNDING_WORLD = "d6092d451eb249bb"


@pytest.fixture(scope="module")
def clips():
    """Pairs of (scene, soundtrack)."""
    return [add_sound(make_scene(5, index)) for index in range(1500)]


@pytest.fixture(scope="module")
def asked(clips):
    return [(*clip, q) for n, clip in enumerate(clips) for q in sound_questions(*clip, random.Random(n))]


def test_the_sounding_world_stays_what_it_was():
    digest = sha256()
    for index in range(80):
        scene, track = add_sound(make_scene(1, index))
        found = [(q.question, q.answer, q.candidates) for q in sound_questions(scene, track, random.Random(index))]
        digest.update(repr((scene.fingerprint, track, found)).encode())
    assert digest.hexdigest()[:16] == SOUNDING_WORLD


def test_every_story_is_told_and_pictures_are_silent(clips):
    told = Counter(track.story for _, track in clips)
    assert set(told) == set(STORIES) and min(told.values()) > 100
    picture = make_scene(5, 0, "image")
    assert add_sound(picture) == (picture, Soundtrack("silent"))


def test_sound_changes_nothing_that_is_seen_except_when_the_first_object_changes(clips):
    for index, (scene, track) in enumerate(clips):
        silent = make_scene(5, index)
        if track.story != "together":
            assert scene == silent
            continue
        lead = replace(scene.objects[0], event_frame=silent.objects[0].event_frame)
        assert replace(scene, objects=(lead, *scene.objects[1:])) == silent


def test_whether_sound_and_change_coincide_needs_both(clips):
    """Seen early or late and heard early or late are independent: each of the four cases is as likely as the others."""
    cases = Counter()
    for scene, track in clips:
        if track.story == "together":
            seen, heard = scene.objects[0].event_frame, round(track.events[0].start * FPS)
            assert track.together == (seen == heard) == (track.source == 0)
            cases[seen <= EARLY_CHANGE[1], heard <= EARLY_CHANGE[1]] += 1
    assert len(cases) == 4 and max(cases.values()) < 1.4 * min(cases.values())


def test_the_maker_of_a_hit_comes_to_rest_when_it_is_heard(clips):
    makers = Counter()
    for scene, track in clips:
        if track.story == "maker":
            ends = [(item.event_frame + SLIDE_FRAMES) / FPS for item in scene.objects[:2]]
            assert track.events[0].start == ends[track.source]
            assert abs(ends[0] - ends[1]) > 0.5
            makers[track.source] += 1
    assert max(makers.values()) < 1.4 * min(makers.values())


def test_a_caller_makes_the_tone_of_its_shape(clips):
    called = Counter()
    for scene, track in clips:
        if track.story == "caller":
            caller = scene.objects[track.source]
            assert caller.steady and track.events[0].kind == SHAPE_TONES[caller.shape]
            called[caller.shape] += 1
    assert set(called) == set(SHAPES)


def test_questions_about_sound_are_balanced_and_offer_their_answer(asked):
    assert_balanced([q for *_, q in asked], 0.08, HEARD_TYPES)
    for scene, track, q in asked:
        assert q.answer in q.candidates and len(set(q.candidates)) == len(q.candidates) >= 2
        if q.type == "caller":
            assert set(q.candidates) == {item.colour for item in scene.objects if item.steady}
        if q.type == "hits":
            assert q.answer == NUMBERS[len(track.events) - 1]


def test_questions_of_training_tell_the_steps_to_the_answer(clips):
    asked = Counter()
    for index, (scene, track) in enumerate(clips):
        found = {q.type: q for q in training_questions(scene, track, random.Random(index))}
        expected = {"maker": {"heard_when", "seen_when", "noise"}, "caller": {"noise"}}
        expected["together"] = {"heard_when", "seen_when", "sooner"}
        assert found.keys() == expected.get(track.story, set()) <= set(TRAINING_TYPES)
        asked.update(f"{q.type} {q.answer}" for q in found.values() if q.type != "noise")
        assert all(q.answer in q.candidates and len(set(q.candidates)) == len(q.candidates) for q in found.values())
        [question] = sound_questions(scene, track, random.Random(0)) or [None]
        if track.story == "together":
            heard, seen = found["heard_when"].answer, found["seen_when"].answer
            assert (heard == seen) == (question.answer == "yes") == (found["sooner"].answer == "when")
            assert heard == seen or (heard == "early") == (found["sooner"].answer == "before")
        elif track.story == "maker":
            mover = scene.objects[found["seen_when"].subject]
            assert (found["seen_when"].answer == "early") == (mover.behaviour == "slide_early")
            is_maker = found["seen_when"].subject == track.source
            assert (found["heard_when"].answer == found["seen_when"].answer) == is_maker
            assert found["noise"].answer == question.answer
        elif track.story == "caller":
            assert found["noise"].answer == f"the {question.answer} {scene.objects[track.source].shape}"
    assert len(asked) == 7 and min(asked.values()) > 30, asked


def test_the_share_of_stories_that_need_sight_can_be_chosen():
    told = {}
    for share in (0.0, 1.0):
        tracks = [add_sound(make_scene(6, index), share)[1] for index in range(200)]
        told[share] = Counter(track.story for track in tracks)
    assert told[0.0]["maker"] == told[0.0]["together"] == 0
    # Without a track, or of a scenario that has no story of its own, are the others.
    assert told[1.0]["maker"] + told[1.0]["together"] > 90 and told[1.0]["silent"] == told[0.0]["silent"]


def loudness(wave_S: np.ndarray) -> np.ndarray:
    """Root mean square of each 10 ms."""
    return np.sqrt(np.square(wave_S[: len(wave_S) // 160 * 160].reshape(-1, 160)).mean(axis=1))


def heard(scene, track) -> np.ndarray:
    """The sound of a clip as a model reads it from the file."""
    data = encode_video(render_scene(scene), wave(track))
    return read_video_sound(data, ClipRules(RATE, SECONDS, 1, SECONDS)).wave_S


def of_story(clips, story, count):
    return [clip for clip in clips if clip[1].story == story][:count]


def test_hits_can_be_counted_in_the_file(clips):
    for scene, track in of_story(clips, "hits", 8):
        loud = loudness(heard(scene, track)) > 0.05
        onsets = int(np.sum(loud[1:] & ~loud[:-1])) + int(loud[0])
        assert onsets == len(track.events), track


def test_tones_have_their_pitch_in_the_file(clips):
    for scene, track in of_story(clips, "caller", 8):
        event = track.events[0]
        wave_S = heard(scene, track)[round(event.start * RATE) :][: round(event.seconds * RATE)]
        power_K = np.abs(np.fft.rfft(wave_S * np.hanning(len(wave_S)))) ** 2
        hertz_K = np.fft.rfftfreq(len(wave_S), 1 / RATE)
        pitch = TONES[event.kind]
        # The fundamental is there; of a pure tone it is nearly everything, of the rough one it is not.
        share = power_K[np.abs(hertz_K / pitch - 1) < 0.06].sum() / power_K.sum()
        assert (share > 0.9) == (event.kind != "rough") and share > 0.01, (track, share)


def test_waves_are_deterministic_and_within_full_scale(clips):
    for _, track in clips[:60]:
        wave_S = wave(track)
        assert wave_S.dtype == np.float32 and wave_S.shape == (round(SECONDS * RATE),)
        assert np.array_equal(wave_S, wave(track)) and np.abs(wave_S).max() <= 1
    quiet = wave(Soundtrack("silent"))
    assert 0 < np.abs(quiet).max() < 0.01


@pytest.mark.slow
def test_a_set_with_sound(tmp_path):
    summary = write_set(tmp_path / "av", videos=40, seed=8, sound=True, questions_per_item=3, mcq_fraction=0)
    assert summary["sound"] is True and set(HEARD_TYPES) <= set(summary["questions"])
    records = json.loads((tmp_path / "av/train.json").read_text())
    sounds = {row["audio"]: row for row in json.loads((tmp_path / "av/sounds.json").read_text())}
    rules = ClipRules(RATE, SECONDS, 1, SECONDS)
    for index, record in enumerate(records):
        scene, track = add_sound(make_scene(8, index))
        note = read_video_sound(tmp_path / "av" / record["video"], rules).note
        assert note == (NO_TRACK if track.story == "silent" else None)
        turns = [turn["value"].removeprefix("<video>\n") for turn in record["conversations"][::2]]
        assert len(turns) <= 3
        about_sound = track.story in ("tone", "hits", "heard_first")
        assert (record["video"] in sounds) == about_sound
        if about_sound:
            [question, answer] = [turn["value"] for turn in sounds[record["video"]]["conversations"]]
            assert question.startswith("<audio>\n") and question.removeprefix("<audio>\n") in turns
            assert answer in record["conversations"][1::2][turns.index(question.removeprefix("<audio>\n"))]["value"]


def test_questions_of_training_are_in_the_training_records_alone(tmp_path):
    parameters = {"videos": 24, "seed": 8, "sound": True, "questions_per_item": 4, "mcq_fraction": 0, "own_stories": 1}
    plain = write_set(tmp_path / "plain", **parameters)
    assert plain["own_stories"] == 1 and "training_questions" not in plain
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught/videos").symlink_to(tmp_path / "plain/videos")
    (tmp_path / "taught/set.json").write_text(json.dumps({**plain, "training_questions": True, "complete": False}))
    taught = write_set(tmp_path / "taught", **parameters, training_questions=True)
    assert taught["questions"] == plain["questions"]
    for name in ("questions.json", "sounds.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "taught" / name).read_bytes()
    before, after = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("plain", "taught"))
    assert [row["id"] for row in before] == [row["id"] for row in after]
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        story = add_sound(make_scene(8, index), 1)[1].story
        assert (old != new) == (story in ("maker", "caller", "together"))
        assert 2 <= len(new["conversations"]) <= 8 and new["conversations"][0]["value"].startswith("<video>\n")
    with pytest.raises(DataError, match="a set without sound has neither"):
        write_set(tmp_path / "silent", 1, training_questions=True)


def test_without_sound_a_set_says_and_holds_nothing_of_it(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--videos", "3", "--seed", "8"]
    assert main(arguments) == 0
    assert "sound" not in json.loads((tmp_path / "set.json").read_text())
    assert not (tmp_path / "sounds.json").exists()
    assert main([*arguments, "--sound"]) == 2
    assert "sound = None, not True" in capsys.readouterr().err


def test_moments_are_told_by_their_words():
    config = audio_config()
    events = (SoundEvent("hit", 0.2, 0.12), SoundEvent("hit", 1.5, 0.12))
    words_NW = moment_words(Soundtrack("hits", events), config)
    assert words_NW.shape == (config.tokens_of(config.clip_frames), len(SOUND_FORMS)) == (12, len(SOUND_FORMS))
    told = {
        number: {SOUND_FORMS[n][-1].strip() for n in row.nonzero().flatten().tolist()}
        for number, row in enumerate(words_NW)
        if row.any()
    }
    assert told == {1: {"hit", "two", "early"}, 9: {"hit", "two", "late"}}
