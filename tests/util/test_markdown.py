from util.markdown import number, table


def test_tables_align_numbers_to_the_right():
    assert table(["name", "ms"], [["2 boxes", "1.5"], ["x", "-"]]).splitlines() == [
        "| name    |  ms |", "| ------- | --: |", "| 2 boxes | 1.5 |", "| x       |   - |"]
    assert [number(x) for x in (0.01234, 1.5, 12.34, 123.4, 1234.5, 0.0, None)] == [
        "0.0123", "1.50", "12.3", "123", "1234", "0", "-"]
