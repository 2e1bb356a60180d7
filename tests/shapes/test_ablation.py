"""The comparison of connectors: a whole small one, and its table and intervals computed by hand."""

import json
import xml.dom.minidom

import pytest
import torch

from videollama2.shapes import ablation
from videollama2.shapes.ablation_report import AblationRun, estimate, results_table

SMALL = ["--encoder-steps", "1", "--clips", "30", "--test-clips", "30", "--steps", "2", "--batch", "2", "--seeds", "2"]


@pytest.mark.slow
def test_it_goes_on_and_gives_the_same_numbers(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--connectors", "linear", "stp_connector", *SMALL]
    assert ablation.main(command) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.glob("r*/*.json")}
    assert made.keys() == {f"{name}-{seed}.json" for name in ("linear", "stp_connector") for seed in (0, 1)}
    reports = {name: (tmp_path / name).read_bytes() for name in ("results.md", "results.json", "results.svg")}
    xml.dom.minidom.parseString(reports["results.svg"])
    run = json.loads(made["stp_connector-1.json"])
    assert run["tokens"] == 16 and run["accuracy"].keys() == {*ablation.STATIC, *ablation.TEMPORAL}
    assert run["chance"]["direction"] == 0.25 and run["chance"]["speed"] == 0.5
    (tmp_path / "runs" / "linear-1.json").unlink()
    assert ablation.main(command) == 0
    assert (tmp_path / "runs" / "linear-1.json").read_bytes() == made["linear-1.json"]
    assert {name: (tmp_path / name).read_bytes() for name in reports} == reports
    capsys.readouterr()
    assert ablation.main([*command, "--steps", "3"]) == 2
    assert "take another folder" in capsys.readouterr().err
    (tmp_path / "runs" / "linear-0.json").write_text("{}")
    assert ablation.main(command) == 2
    assert "linear-0.json: is not a run of this comparison" in capsys.readouterr().err


@pytest.mark.slow
def test_the_loss_of_an_answer_is_that_of_its_tokens_one_by_one():
    tokenizer = ablation.build_tokenizer(1024)
    torch.manual_seed(0)
    reader = ablation.AblationModel("linear", 8, tokenizer).eval()
    features = torch.randn(2, 8, 16, 8)
    with torch.no_grad():
        together = reader(features, ["What colour?", "Where is it?"], ["red", "top left"])
        visual = reader.connector(features[1:])
        prompt, answer = tokenizer("Where is it?\n").input_ids, tokenizer("top left").input_ids
        ids = torch.tensor([prompt + answer])
        embeds = torch.cat([visual, reader.decoder.model.embed_tokens(ids)], 1)
        logits = reader.decoder(inputs_embeds=embeds).logits[0].log_softmax(-1)
    first = visual.shape[1] + len(prompt) - 1
    expected = -sum(logits[first + n, each] for n, each in enumerate([*answer, tokenizer.eos_token_id]))
    assert together[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_means_and_intervals_by_hand():
    values = [60.0, 66.0, 72.0]
    found = estimate(values)
    assert found.mean == 66 and found.half == pytest.approx(4.303 * 6 / 3**0.5)  # Student's, two degrees of freedom
    assert str(found) == "66.0 ± 14.9" and str(estimate([50.0])) == "50.0"
    chance = {"colour": 0.25, "speed": 0.5}
    runs = [
        AblationRun("linear", seed, 16, 8256, 1.0, {"colour": 0.9, "speed": 0.5 + seed / 10}, chance) for seed in (0, 1)
    ]
    assert results_table(runs, ["colour"], ["speed"]).splitlines()[2:] == [
        "| linear | 16 | 8,256 | 2 | 90.0 ± 0.0 | 55.0 ± 63.5 | 90 | 55 |",
        "| (chance) |  |  |  | 25.0 | 50.0 | 25 | 50 |",
    ]
