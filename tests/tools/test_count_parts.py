import pytest

from tools.count_parts import count_costs, main, parse_args, parts_table

SDETR = "config/SDETR/sdetr_r50.py"


def test_counts_by_part():
    counts = count_costs(SDETR, {"num_queries": 10}, (64, 96))
    assert list(counts) == ["backbone", "input projection", "encoder, stage 1", "decoder, stage 1", "encoder, stage 2",
                            "decoder, stage 2", "heads", "other", "all"]
    assert counts["heads"][0] == pytest.approx((257 * 92 + 2 * 257 * 256 + 257 * 4) / 1e6)
    assert counts["other"][0] == pytest.approx(2 * 10 * 256 / 1e6)  # the query embeddings
    for column in (0, 1):
        assert sum(parts[column] for part, parts in counts.items() if part != "all") == pytest.approx(
            counts["all"][column])


def test_an_encoder_is_expensive_where_tokens_are_many():
    """Of one head or eight: attention costs the same, and grows with the square of the tokens."""
    one, eight = (count_costs(SDETR, {"enc_nheads": heads}, (256, 256))["encoder, stage 2"][1] for heads in (1, 8))
    assert one == pytest.approx(eight)
    small, large = (count_costs(SDETR, {}, size)["encoder, stage 2"][1] for size in ((64, 64), (128, 128)))
    linear = 3 * (4 * 256**2 + 2 * 256 * 2048)
    tokens = [16, 64]
    assert [small, large] == pytest.approx([(n * linear + 3 * 2 * 256 * n * n) / 1e9 for n in tokens])


def test_table_has_blanks_for_parts_that_a_model_lacks():
    lines = parts_table({"a": {"x": (1.0, 2.0), "all": (1.0, 2.0)},
                         "b": {"y": (3.0, 4.0), "all": (3.0, 4.0)}}).splitlines()
    assert [line.replace(" ", "") for line in lines[2:]] == ["|x|1.00|2.0|||", "|y|||3.00|4.0|",
                                                             "|all|1.00|2.0|3.00|4.0|"]


def test_the_command(capsys):
    main(parse_args([SDETR, "config/SDETR/lite_sdetr_r50.py", "--size", "64", "64"]))
    assert "sdetr_r50: M parameters | GFLOPs | lite_sdetr_r50: M parameters" in capsys.readouterr().out
