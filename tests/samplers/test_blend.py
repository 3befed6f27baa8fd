from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fewstep import samplers
from fewstep.samplers.blend import Blend, coordinates, lagrange, mixed, with_coordinates
from fewstep.samplers.family import load_blends, load_family, save_family
from fewstep.schedules import EDM, VPLinear, grid

LAW = VPLinear()


def table(solver="unipc-3", spacing="quadratic", nfe=4):
    return samplers.build(solver, grid(LAW, nfe, spacing)).in_basis("x0")


def same(one, other, **tolerance):
    for name in ("carry", "weights"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), **tolerance)
    np.testing.assert_allclose(one.grid.time, other.grid.time, **tolerance)
    np.testing.assert_allclose(one.grid.label, other.grid.label, **tolerance)


def test_coordinates_are_all_of_a_table():
    one = table()
    same(with_coordinates(table("ddim", "lam"), coordinates(one)), one, atol=1e-12)
    zero = coordinates(table("ddim"))
    assert abs(zero.weights).max() < 1e-14
    assert abs(zero.carry).max() < 1e-14


def test_a_clean_node_may_have_no_label():
    clean = samplers.build("unipc-2", grid(EDM(), 4, "karras")).in_basis("x0")
    assert clean.grid.label[-1] == -np.inf
    assert (coordinates(clean).label == 0).all()
    same(with_coordinates(clean, coordinates(clean)), clean, atol=1e-12)


def test_a_mixture_keeps_constants_as_exact_as_its_parts():
    one, other = table("unipc-3", "quadratic"), table("dpmpp-2m", "lam")
    found = mixed([one, other], [0.3, 0.7])
    carry = found.grid.sigma[1:] / found.grid.sigma[:-1]
    np.testing.assert_allclose(found.carry, carry, atol=1e-12)
    total = found.grid.alpha[1:] - carry * found.grid.alpha[:-1]
    np.testing.assert_allclose(found.weights.sum(1), total, atol=1e-12)
    half = 0.3 * one.grid.time + 0.7 * other.grid.time
    np.testing.assert_allclose(found.grid.time, half)
    same(mixed([one, other], [0.0, 1.0]), other, atol=1e-12)


def test_shares_are_those_of_a_polynomial():
    knots = (1.0, 3.0, 7.0)
    for at in (1.0, 2.5, 7.0, 8.0):
        shares = lagrange(knots, at)
        for power in range(3):
            value = sum(s * k**power for s, k in zip(shares, knots, strict=True))
            assert value == pytest.approx(at**power)


def test_a_blend_is_its_tables_at_their_scales_and_between():
    tables = (table("ddim"), table("dpmpp-2m"), table("unipc-3"))
    blend = Blend((1.0, 2.0, 5.0), tables)
    for scale, each in zip(blend.scales, tables, strict=True):
        same(blend.at(scale), each, atol=1e-12)
    between = blend.at(1.5)
    same(between, mixed(tables, lagrange(blend.scales, 1.5)), atol=0)
    with pytest.warns(UserWarning, match=r"guidance 9 is not 1 to 5"):
        same(blend.at(9.0), tables[-1], atol=1e-12)


def test_a_single_scale_is_the_one_it_is_for():
    blend = Blend((2.0,), (table(),))
    same(blend.at(2.0), table(), atol=0)
    with pytest.warns(UserWarning, match=r"guidance 3 is not 2, which .* was learned for"):
        same(blend.at(3.0), table(), atol=0)


def test_a_table_of_no_scale_is_for_all(recwarn):
    same(Blend((), (table(),)).at(7.0), table(), atol=0)
    assert not recwarn


def test_bad_blends_are_named():
    with pytest.raises(ValueError, match="2 tables for 0 scales"):
        Blend((), (table(), table()))
    with pytest.raises(ValueError, match="1 tables for 2 scales"):
        Blend((1.0, 2.0), (table(),))
    with pytest.raises(ValueError, match="scales must rise"):
        Blend((2.0, 1.0), (table(), table()))
    with pytest.raises(ValueError, match="same number of evaluations"):
        Blend((1.0, 2.0), (table(), table(nfe=5)))
    with pytest.raises(ValueError, match="has a bias"):
        Blend((1.0, 2.0), (table(), replace(table(), bias=[0.0, 1.0, 0.0, 0.0])))


def test_a_family_holds_blends(tmp_path):
    path = tmp_path / "tables.json"
    blend = Blend((1.0, 4.0), (table("ddim"), table("unipc-3")))
    save_family({4: blend, 5: table(nfe=5)}, path)
    again = load_blends(path)
    assert again[4].scales == (1.0, 4.0)
    same(again[4].tables[1], blend.tables[1], atol=0)
    with pytest.raises(ValueError, match="for guidance 1 to 4: say which scale"):
        load_family(path)
    found = load_family(path, 2.0)
    same(found[4], blend.at(2.0), atol=0)
    same(found[5], table(nfe=5), atol=0)
    text = path.read_text()
    path.write_text(text.replace('"guidance": [', '"guidance": [9.0,', 1))
    with pytest.raises(ValueError, match="table 4: 2 tables for 3 scales"):
        load_blends(path)
