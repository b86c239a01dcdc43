"""The claims: each is measured from records as by hand, and the committed page is what the records give."""

import json
import math
import re
import sys

import numpy as np
import pytest
from helpers.sweeps import entry

from alexnet_jax import UserError
from alexnet_jax.cli import commands, verbs
from alexnet_jax.config import flat
from configs import quickstart
from experiments.claims import command, figure1, measures, page, pictures, studies
from experiments.claims.claims import CLAIMS
from experiments.record import file
from experiments.report.intervals import detectable, difference
from experiments.report.rows import make_report
from experiments.report.table import escaped, markdown
from experiments.results import computes
from experiments.sweep import choose, read_sweep
from experiments.sweeps import ablations, towers


def study(name, *entries, settings=None):
    """A record of some entries; what their cells change does not matter here."""
    config = quickstart.get_config()
    config.epochs = 4
    record = file.Record(name, name, computes(flat(json.loads(config.to_json()))) | (settings or {}))
    for run in entries:
        record.fields.setdefault(run["cell"], {})
        record.titles[run["cell"]] = run["cell"]
        file.add_run(record, run)
    return record


def two(cell, differences):
    """Runs of a base, hardly spread, and of a cell that differ so, in points."""
    found = []
    for seed, worse in enumerate(differences):
        base = 0.3 + seed / 10**5
        found += [entry("base", seed, base), entry(cell, seed, base + worse / 100)]
    return found


# --- Measures ---------------------------------------------------------------------------------------------------------


def test_an_interval_allows_for_the_other_differences():
    """Those that are not measured yet too: else more runs of other ablations would change a verdict."""
    values = [1.4, 1.9, 1.2, 1.7]
    records = {"cifar10_norm": study("cifar10_norm", *two("norm_off", values))}
    found = measures.difference("cifar10_norm", "norm_off")(records)
    base, ours = ([run["top1"] * 100 for run in found.runs[i : i + 4]] for i in (0, 4))
    assert found.interval == pytest.approx(difference(ours, base)) and (found.n, len(found.runs)) == (4, 8)
    assert found.ours == "+1.55 (+1.06 to +2.04)" and found.verdict == "agrees"
    records = {"ablations": study("ablations", *two("lrn_off", values))}
    found = measures.difference("ablations", "lrn_off")(records)
    assert found.interval == pytest.approx(difference(ours, base, len(ablations.NAMES) + 4))
    assert (
        found.verdict == f"not significant: {detectable(ours, base, len(ablations.NAMES) + 4):.2f} would have been seen"
    )
    assert measures.difference("ablations", "tanh")(records) is None
    assert measures.difference("ablations", "lrn_off")({}) is None


def test_every_number_of_an_ablation_that_a_claim_looks_at_is_counted(monkeypatch):
    """The interval of each is wider for all of them."""
    seen = set()
    compared = measures.compared
    monkeypatch.setattr(
        measures, "compared", lambda records, *what: seen.add((*what[:2], what[2].__name__)) or compared(records, *what)
    )
    records = {name: study(name, *two("x", [1.0])) for name in ("ablations", "cifar10_norm", "towers")}
    for claim in CLAIMS:
        if claim.measure:
            claim.measure(records)
    beside = {(study, *what) for study, all_of in measures.BESIDE.items() for what in all_of}
    instead = {("towers", cell, "apart") for cell in towers.ABLATIONS}
    assert {what for what in seen if what[2] != "error"} == beside | instead
    assert {cell for study, cell, _ in seen if study == "towers"} == set(towers.ABLATIONS)
    assert {cell for study, cell, _ in seen if study == "ablations"} <= set(ablations.NAMES)


def test_how_far_apart_towers_are_is_compared_whichever_has_the_colour():
    base = [entry("base", seed, color=shares) for seed, shares in enumerate([[0.5, 0.4], [0.4, 0.5], [0.5, 0.38]])]
    more = [entry("long", seed, color=shares) for seed, shares in enumerate([[0.8, 0.1], [0.1, 0.8], [0.75, 0.1]])]
    records = {"towers": study("towers", *base, *more)}
    found = measures.difference("towers", "long", measures.apart, sign=0)(records)
    assert found.interval == pytest.approx(difference([70, 70, 65], [10, 10, 12], len(towers.ABLATIONS)))
    assert found.verdict == "significant; no claim of 2012"
    fewer = measures.difference("towers", "long", measures.apart, sign=-1)(records)
    assert (fewer.interval, fewer.verdict) == (found.interval, "contradicts")
    assert measures.apart(entry("base", 0)) is measures.apart(entry("base", 0, color=[0.5])) is None


def test_verdicts_are_in_plain_words():
    def of(values, **more):
        records = {"cifar10_norm": study("cifar10_norm", *two("norm_off", values))}
        return measures.difference("cifar10_norm", "norm_off", **more)(records).verdict

    assert of([-1.4, -1.6, -1.5]) == "contradicts"
    assert of([-1.4, 1.6, -1.5]).startswith("not significant: ") and of([-1.4, 1.6, -1.5]).endswith("have been seen")
    assert of([1.0]) == of([1.5, 1.5]) == "too few seeds"
    assert of([1.4, 1.6, 1.5], sign=0) == of([-1.4, -1.6, -1.5], sign=0) == "significant; no claim of 2012"
    assert of([1.4, 1.6, 1.5], sign=-1) == "contradicts" and of([-1.4, -1.6, -1.5], sign=-1) == "agrees"
    assert of([1.4], noise=True) == "too few seeds"
    assert of([1.4, -1.6, 1.5], noise=True).startswith("not significant: ")
    for values in ([1.4, 1.6, 1.5], [-1.4, -1.6, -1.5]):
        assert of(values, noise=True) == "significant; the number of 2012 is within noise"


def test_runs_that_failed_count_for_nothing():
    runs = two("lrn_off", [1.4, 1.9, 1.2])
    failed = {"cell": "lrn_off", "seed": 3, "state": "failed", "reason": "the loss is nan (epoch 1 of 4)"}
    records = {"ablations": study("ablations", *runs, entry("base", 3), failed)}
    assert measures.difference("ablations", "lrn_off")(records).n == 3
    assert "- failed: ablations, lrn\\_off, seed 3: the loss is nan (epoch 1 of 4)" in page.page(records)


def test_overfitting_needs_both_errors():
    """A lower training error, and a higher error."""

    def of(errors, trainings):
        runs = two("crops_off", errors)
        for run, training in zip(runs[1::2], trainings, strict=True):
            run["training"] = [0.5, 0.4, 0.3, 0.2 + training / 100]
        return measures.overfitting("ablations", "crops_off")({"ablations": study("ablations", *runs)})

    assert of([3, 3.1, 3.2], [-9, -9.1, -9.2]).verdict == "agrees"
    assert of([3, -3.1, 3.2], [-9, -9.1, -9.2]).verdict == "not significant"
    assert of([-3, -3.1, -3.2], [-9, -9.1, -9.2]).verdict == "contradicts"
    assert of([3, 3.1, 3.2], [9, 9.1, 9.2]).verdict == "contradicts"
    assert "training error −9.10" in of([3, 3.1, 3.2], [-9, -9.1, -9.2]).ours


def falling(epochs, until, seed=0):
    """A training error that falls in a straight line to zero at `until`, with noise: ten points and a mean an epoch."""
    ends = [i / 10 for i in range(1, 10 * epochs + 1)]
    noise = np.random.default_rng(seed).normal(0, 0.002, len(ends))
    errors = [max(0.0, 1 - (end - 0.05) / until) + e for end, e in zip(ends, noise, strict=True)]
    means = [sum(errors[10 * i : 10 * i + 10]) / 10 for i in range(epochs)]
    return {"points": {"epoch": ends, "loss": errors, "top1": errors}, "training": means}


def test_epochs_to_a_training_error():
    """A straight line from 1 to 0 in eight epochs is at 25 % after six."""
    assert figure1.epochs_to(falling(8, 8)) == pytest.approx(6, abs=0.05)
    assert figure1.epochs_to(falling(4, 8)) is None
    assert figure1.epochs_to({"training": [0.4, 0.2]}) == pytest.approx(1.25)
    assert figure1.epochs_to({"training": [0.4, None, 0.2]}) == pytest.approx(2.0)
    assert figure1.epochs_to({"training": [0.2, 0.4]}) == 0.5
    assert figure1.epochs_to({"training": [None, None]}) is None


def test_figure_1_is_a_ratio_of_epochs():
    def of(slower, tanh_epochs, seeds=3):
        runs = [entry("base", s, **falling(8, 2 + 0.1 * s, s)) for s in range(seeds)]
        runs += [entry("tanh", s, **falling(tanh_epochs, slower * (2 + 0.1 * s), s)) for s in range(seeds)]
        return figure1.measure({"figure1": study("figure1", *runs)})

    found = of(6, 14)
    assert found.interval.mean == pytest.approx(6, rel=0.03) and found.interval.low < found.interval.mean
    assert of(3, 14).verdict == "agrees that ReLU is faster, but not 6 times"
    assert of(1, 14).verdict in ("not significant", "contradicts") and of(6, 14, 1).verdict == "too few seeds"
    bound = of(6, 6)
    assert bound.ours.startswith("more than 3.") and bound.verdict == "agrees: ReLU is faster"
    assert of(6, 6, 1).verdict == "one seed: ReLU is faster"
    short = of(6, 1)  # ReLU is there after one and a half
    assert short.verdict == "not measured: longer runs" and short.ours.endswith("tanh not trained as long")
    some = of(5.3, 9)  # each seed is later than the one before, and the third is too late
    assert re.search(r"2 of 3 tanh networks get there after [78]\.. to 8\.. epochs$", some.ours), some.ours
    assert some.verdict == "agrees: ReLU is faster"
    assert figure1.measure({}) is None


def test_a_published_error_is_compared_with_another_run_of_ours():
    def of(*errors, theirs=18):
        runs = [entry("cifar10_18pct", seed, e / 100, views=1) for seed, e in enumerate(errors)]
        return studies.published("cifar10", "cifar10_18pct", theirs)({"cifar10": study("cifar10", *runs)})

    assert of(18.2, 18.4, 18.1).verdict == "compatible"  # 17.5 to 18.5 is 18
    assert of(19.2, 19.3, 19.25).verdict == "higher, within 1.3 points"  # 1.25 away
    assert of(16.2, 16.3, 16.25).verdict == "lower, within 1.8 points"
    assert of(18.3).verdict == "too few seeds: within 0.3 points" and of(18.3).ours == "18.3 %, one view"
    assert of(22, 22.6, theirs=26).verdict == "too few seeds: within 3.7 points"
    # Of three with a standard deviation of 0.2 one more is within 4.303 * 0.2 * sqrt(1 + 1 / 3) = 0.99, their mean 0.5.
    assert of(19.1, 19.3, 19.5).verdict == "compatible" and of(19.35, 19.55, 19.75).verdict.startswith("higher")
    assert of(18.2, 18.4, 18.1).ours == "18.23 ± 0.15 %, one view"


def test_views_and_gaps():
    records = {
        "full": study("full", *[entry("imagenette", s, 0.2, centre_top1=0.2 + g) for s, g in enumerate((0.01, 0.02))]),
        "cifar10": study("cifar10", entry("a", 0, 0.13), entry("b", 0, 0.10), entry("b", 1, 0.12)),
    }
    assert studies.views_gain("full", "imagenette")(records).interval.mean == pytest.approx(1.5)
    assert studies.gap("cifar10", "a", "b")(records).interval == (1, pytest.approx(2), None, None)


def test_networks_averaged():
    runs = [entry("base", seed, 0.30 + seed / 100) for seed in range(3)]
    records = {"ablations": study("ablations", *runs)}
    assert studies.ensemble("ablations", "base", 3)(records) is None
    records["ablations"].ensembles = [{"cell": "base", "seeds": [0, 1, 2], "views": 10, "top1": 0.28, "top5": 0.1}]
    found = studies.ensemble("ablations", "base", 3)(records)
    assert (found.ours, found.verdict) == ("+3.00: 28.00 % against 31.00 % alone", "one set: agrees")
    assert studies.ensemble("ablations", "base", 5)(records) is None


def test_towers_specialise_in_every_run_or_not():
    def of(*shares):
        runs = [entry("base", seed, color=list(share)) for seed, share in enumerate(shares)]
        kernels = {"model.conv_widths": [96, 64, 96, 96, 64], "model.towers": 2}
        return studies.towers("towers", "base")({"towers": study("towers", *runs, settings=kernels)})

    caffes = (39 / 48, 5 / 48)
    assert of(caffes, caffes[::-1]).verdict == "agrees"
    some = of(caffes, (0.5, 0.5))
    assert some.verdict == "contradicts: not in every run"
    assert some.ours == (
        "one tower colour-blind in 1 of 2 runs; apart beyond chance in 1; shares of 48 kernels 35 points apart on "
        "average, 8 by chance"
    )
    assert of((0.5, 0.5), (0.5, 0.5)).verdict == "contradicts: in no run"
    assert of(caffes).verdict == "one seed: yes"
    assert studies.towers("towers", "base")({"towers": study("towers", entry("base", 0, color=[0.5]))}) is None


def test_the_first_steps():
    """Fifty steps of ten classes: one loss falls after step 20, the other stays at ln 10."""

    def of(*losses):
        ends = [(i + 1) / 10 for i in range(len(losses))]
        return {"epoch": ends, "loss": list(losses), "top1": [0.9] * len(losses)}

    flat_loss, falls = of(*[math.log(10)] * 10), of(*[math.log(10)] * 4, *[1.0] * 6)
    steps = {"steps": 50}
    runs = [entry("base", 0, points=flat_loss, **steps), entry("biases_0", 0, points=falls, **steps)]
    records = {"start": study("start", *runs)}
    assert studies.first_steps("base")(records).verdict == "one seed: not within 50 steps"
    found = studies.first_steps("biases_0")(records)
    assert (found.verdict, found.ours) == ("one seed: agrees", "stops guessing after 25 steps")
    found = studies.first_steps("biases_0", later=True)(records)
    assert found.verdict == "one seed: contradicts" and found.ours.endswith(
        "as written it still guesses after 50 steps"
    )
    assert studies.first_steps("std")(records) is None
    runs += [entry("biases_0", 1, points=falls, **steps), entry("biases_0", 2, points=flat_loss, **steps)]
    records = {"start": study("start", *runs)}
    found = studies.first_steps("biases_0")(records)
    assert found.ours == "stops guessing after 25 steps, 1 of 3 not within 50" and found.verdict == "in 2 of 3 runs"
    assert studies.first_steps("biases_0", later=True)(records).n == 1  # the seeds that both have
    runs += [entry("base", seed, points=flat_loss, **steps) for seed in (1, 2)]
    found = studies.first_steps("biases_0", later=True)({"start": study("start", *runs)})
    assert found.verdict == "contradicts: in no run" and found.n == 3  # the third pair is undecided
    both = [run | {"points": flat_loss} for run in runs]
    assert studies.first_steps("biases_0", later=True)({"start": study("start", *both)}).verdict == (
        "neither within 50 steps"
    )
    runs[0] = entry("base", 0, points=of(*[math.log(10)] * 2, *[1.0] * 8), **steps)
    found = studies.first_steps("biases_0", later=True)({"start": study("start", *runs)})
    assert found.verdict == "in 1 of 2 runs"


def test_dropout_takes_more_epochs():
    """With dropout it ends at 0.2 after four epochs; without, it is there after two."""
    runs = two("dropout_off", [3, 3, 3])
    for run in runs[1::2]:
        run["training"] = [0.4, 0.2, 0.1, 0.05]
    found = studies.epochs_of_dropout({"ablations": study("ablations", *runs)})
    assert found.interval == (3, pytest.approx(2), pytest.approx(2), pytest.approx(2))
    for run in runs[1::2]:
        run["training"] = [0.4, 0.3, 0.25, 0.2]
    found = studies.epochs_of_dropout({"ablations": study("ablations", *runs)})
    assert found.interval.mean == 1 and found.verdict.startswith("not comparable")
    runs[1]["training"] = [0.4, 0.3, 0.25, 0.21]
    found = studies.epochs_of_dropout({"ablations": study("ablations", *runs)})
    assert found.ours == "without dropout it is not reached in 1 of 3 runs" and found.interval is None


# --- Page -------------------------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_records_give():
    """Of experiments/CLAIMS.md and the README's block, byte for byte: if not, run alexnet claims."""
    records = command.read(file.RECORDS)
    assert (command.ROOT / "experiments/CLAIMS.md").read_text() == page.page(records)
    readme = (command.ROOT / "README.md").read_text()
    assert page.with_block(readme, records, "README.md") == readme


def test_the_committed_table_of_ablations_is_the_reports():
    """In docs/ablations.md: if not, run alexnet report experiments/records/ablations.json."""
    report = make_report([file.RECORDS / "ablations.json"])
    table, _, _ = markdown(report).partition("\n\n")
    assert f"\n{table}\n\n" in (command.ROOT / "docs/ablations.md").read_text()


def test_the_readme_has_ten_measured_rows_the_main_ones_first():
    cells = [claim.command.split("--only ")[1].split()[0] for claim in CLAIMS if "--only" in claim.command]
    runs = [entry(cell, seed, 0.3 + seed / 100) for cell in {"base", *cells} for seed in range(3)]
    records = {"ablations": study("ablations", *runs)}
    found = [claim for claim, there in page.rows(records) if there]
    block = page.block(records)
    shown = [claim for claim in found if f"| {escaped(claim.says)} |" in block]
    assert len(shown) == 10 < len(found) and "not measured" not in block
    assert {claim.says for claim in found if claim.main} <= {claim.says for claim in shown}
    assert f"10 of {len(CLAIMS)} rows, of which {len(found)} are measured so far" in block


def test_without_records_nothing_is_measured():
    text = page.page({})
    assert all(f"| {i} |" in text for i in range(1, len(CLAIMS) + 1)) and "No run is recorded yet." in text
    assert {page.verdict(claim, found) for claim, found in page.rows({})} == {"not measured", "out of reach"}
    assert all(found is None for _, found in page.rows({}))


def test_every_command_of_a_sweep_names_ablations_that_it_has():
    for claim in CLAIMS:
        if "--only" in claim.command:
            words = claim.command.split()
            _, ablations = read_sweep(words[words.index("--sweep") + 1])
            only = words[words.index("--only") + 1]
            assert choose(ablations, only) or only == "base"


def test_every_command_is_accepted(monkeypatch):
    """Its flags are parsed, and its config is made; nothing runs."""
    monkeypatch.chdir(command.ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # find_module adds the checkout to it
    for claim in CLAIMS:
        for line in claim.command.replace("{seeds}", "3").split(" && ") if claim.command else []:
            program, verb, *flags = line.split()
            assert program == "alexnet"
            commands.parse(verbs.find_module(verb), flags)


def test_every_claim_has_what_its_row_needs():
    for claim in CLAIMS:
        assert claim.section and claim.says and claim.paper
        assert bool(claim.command) == (claim.measure is not None), claim.says
        assert claim.measure or claim.takes
        assert not claim.unit or claim.number is None or claim.measure
    assert sum(claim.main for claim in CLAIMS) == 10


def test_the_picture_has_the_numbers_of_the_rows(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(pictures.plots, "save", lambda figure, path: figures.append(figure) or path)
    records = {"ablations": study("ablations", *two("lrn_off", [1.4, 1.5, 1.3, 1.4, 1.5, 1.3, 1.4, 1.4]))}
    pictures.draw(records, tmp_path)
    rows = [row for row in page.rows(records) if row[1] and row[1].interval and row[0].number]
    [(claim, found)] = [row for row in rows if row[0].number == 1.4]
    drawn = {}
    for axes in figures[0].axes:
        for line in axes.lines:
            drawn.setdefault(line.get_marker(), []).append([round(float(x), 6) for x in line.get_xdata()])
    assert [claim.number] in drawn[pictures.THEIRS["marker"]]
    assert [round(found.interval.mean, 6)] in drawn[pictures.OURS["marker"]]
    low, high = found.interval.ends
    assert [round(low, 6)] in drawn["|"] and [round(high, 6)] in drawn["|"]


def test_the_command_writes_page_block_and_pictures(tmp_path):
    """With records of every study, and twice the same."""
    nets = [(cell, seed, until) for cell, until in (("base", 2), ("tanh", 9)) for seed in (0, 1)]
    runs = {
        "ablations": two("lrn_off", [1.4, 1.9, 1.2]),
        "cifar10": [entry("cifar10_18pct", seed, 0.18) for seed in range(3)],
        "figure1": [entry(cell, seed, validation=[None] * 8, **falling(8, until, seed)) for cell, seed, until in nets],
    }
    (tmp_path / "records").mkdir()
    for name, entries in runs.items():
        epochs = {"epochs": len(entries[0]["training"])}
        file.write(study(name, *entries, settings=epochs), tmp_path / f"records/{name}.json")
    (tmp_path / "README.md").write_text("before\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n")
    flags = ["--records", "records", "--out", "CLAIMS.md", "--readme", "README.md", "--pictures", "docs"]
    flags = commands.parse(command, [word if word.startswith("--") else str(tmp_path / word) for word in flags])
    command.main(flags)
    readme, claims = (tmp_path / "README.md").read_text(), (tmp_path / "CLAIMS.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("<!-- /claims -->\nafter\n") and "old" not in readme
    assert (
        "+1.50" in readme
        and "+1.50" in claims
        and "18.00 ± 0.00 %" in claims
        and "| A CPU, 1 core, jax 0.1 |" in claims
    )
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == ["claims.png", "figure1.png"]
    command.main(flags)
    assert (readme, claims) == ((tmp_path / "README.md").read_text(), (tmp_path / "CLAIMS.md").read_text())
    for lines in (claims.split("\n\n"), readme.split("\n\n")):
        for table in (part.splitlines() for part in lines if part.startswith("|")):
            assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(UserError, match="has no <!-- claims -->"):
        command.main(flags)
