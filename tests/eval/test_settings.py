from __future__ import annotations

import pytest
from fewstep.eval.settings import ExtractorConfig, ModelConfig, SolverConfig, table_within
from fewstep.schedules import EDM, VPDiscrete, betas, grid
from pydantic import ValidationError

SCHEDULE = VPDiscrete(betas())


def test_names_stand_for_settings():
    assert SolverConfig.model_validate("ddim") == SolverConfig(name="ddim")
    assert ExtractorConfig.model_validate("pixels") == ExtractorConfig(id="pixels")
    assert ModelConfig.model_validate("some/model") == ModelConfig(id="some/model", data=None)


def test_the_digits_know_their_data():
    assert ModelConfig.model_validate("mnist").data == "mnist"
    assert ModelConfig(id="mnist", data="other").data == "other"
    assert ModelConfig(id="mnist", statistics={"pixels": "a.npz"}).data is None


@pytest.mark.parametrize("model", [SolverConfig, ExtractorConfig, ModelConfig])
def test_misspelt_keys_are_errors(model):
    with pytest.raises(ValidationError, match="nmae"):
        model.model_validate({"nmae": 1, "name": "a", "id": "a"})


def test_labels_are_for_file_names():
    with pytest.raises(ValidationError, match="label"):
        SolverConfig(name="ddim", label="a/b")


def test_prompts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  un café \n", encoding="utf-8")
    assert ModelConfig(id="m", prompts=str(path)).prompts == ("a cat", "un café")
    assert ModelConfig(id="m", prompts=["a", "b"]).prompts == ("a", "b")
    with pytest.raises(ValidationError, match=r"no file .*none.txt"):
        ModelConfig(id="m", prompts=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("given", "name"), [("a/b/cifar.pkl", "cifar"), ("org/model", "model"), (".", ".")]
)
def test_a_model_is_called_by_its_file(given, name):
    assert ModelConfig(id=given).name == name
    assert ModelConfig(id=given, label="mine").name == "mine"


def test_a_table_stays_within_its_evaluations():
    # Heun spends two evaluations a step, but for the last.
    table = table_within(SCHEDULE, SolverConfig(name="heun"), 8, "lam", "zero")
    assert table.nfe == 7


def test_a_solver_may_have_nodes_and_options_of_its_own():
    own = SolverConfig(name="ddim", spacing="karras", options={"eta": 1.0})
    table = table_within(SCHEDULE, own, 5, "lam", "min")
    expected = grid(SCHEDULE, 5, "karras", end="min")
    assert table.grid.sigma.tolist() == expected.sigma.tolist()
    assert table.noise.any()


def test_a_start_is_where_the_noise_has_fallen_to():
    def start(**values):
        return {"teleport": "mnist", "skip": 10.0, **values}

    late = table_within(SCHEDULE, SolverConfig(name="ddim", start=start()), 5, "uniform", "zero")
    assert late.nfe == 5
    assert late.grid.nsr[0] == pytest.approx(10)
    most = float(SCHEDULE.nsr(SCHEDULE.t_max))
    whole = SolverConfig(name="ddim", start=start(skip=most))
    bare = table_within(SCHEDULE, SolverConfig(name="ddim"), 5, "uniform", "zero")
    assert (table_within(SCHEDULE, whole, 5, "uniform", "zero").grid.time == bare.grid.time).all()
    # In the time of another law it is the same ratio.
    other = SolverConfig(name="ddim", start=start(), law="vp")
    assert table_within(EDM(), other, 5, "uniform", "zero").grid.nsr[0] == pytest.approx(10)
    assert str(other.start) == "mnist to 10"
    assert str(SolverConfig(name="ddim", start=start(classes=True)).start) == "mnist by class to 10"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"start": {"teleport": "mnist", "skip": 1e4}},
            "cannot begin where sigma / alpha is 10000",
        ),
        ({"grid": {"t_max": 900}}, "ours: start.skip and t_max say the same"),
        ({"name": "mnist-learned"}, "mnist-learned has nodes of its own: no start"),
    ],
)
def test_a_start_that_is_none(change, said):
    values = {"name": "ddim", "label": "ours", "start": {"teleport": "mnist", "skip": 10}}
    with pytest.raises(ValueError, match=said):
        table_within(SCHEDULE, SolverConfig(**{**values, **change}), 5, "uniform", "zero")
