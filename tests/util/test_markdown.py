from util.markdown import table, three_digits


def test_tables_align_numbers_to_the_right():
    assert table(["name", "ms"], [["2 boxes", "1.5"], ["x", "-"]]).splitlines() == [
        "| name    |  ms |", "| ------- | --: |", "| 2 boxes | 1.5 |", "| x       |   - |"]


def test_the_sides_can_be_chosen():
    assert table(["name", "difference"], [["a", "+1.0 %"]], "lr").splitlines() == [
        "| name | difference |", "| ---- | ---------: |", "| a    |     +1.0 % |"]


def test_any_text_stays_in_its_cell():
    lines = table(["name", "x"], [["a|b", "two\nlines"], ["a\\|b", ""]]).splitlines()
    assert lines[2:] == ["| a\\|b | two lines |", "| a\\|b |           |"]


def test_a_table_may_be_empty():
    assert table(["name", "count"], []).splitlines() == ["| name | count |", "| ---- | ----- |"]


def test_numbers_have_three_significant_digits():
    assert [three_digits(x) for x in (0.01234, 1.5, 12.34, 123.4, 1234.5, 0.0, None)] == [
        "0.0123", "1.50", "12.3", "123", "1234", "0", "-"]
