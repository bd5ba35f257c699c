"""Starting a fine-tuning from a model that knew other classes."""
import logging

import pytest
import torch

from tests.util.states import differing, fitting, refusal, snapshot
from util.class_names import COCO_CLASSES
from util.pretrained import carry_rows, load_pretrained


def test_fine_tuning_starts_from_all_weights_of_an_equal_model(build, save):
    plain, average, model = build(1), build(2), build(3)
    assert load_pretrained(model, save({"model": plain.state_dict()})) == []
    assert not differing(snapshot(model), snapshot(plain))
    load_pretrained(model, save({"model": plain.state_dict(), "ema_model": average.state_dict()}))
    assert not differing(snapshot(model), snapshot(average))


def test_another_number_of_classes_leaves_only_class_tensors_fresh(build, save):
    source, model = build(1), build(2, num_classes=5, dn_labelbook_size=5)
    before = snapshot(model)
    fresh = load_pretrained(model, save({"model": source.state_dict()}))
    assert fresh == sorted(key for key in before if fitting(key, "class_embed", "label_enc"))
    after, wanted = snapshot(model), snapshot(source)
    for key in after:
        assert torch.equal(after[key], before[key] if key in fresh else wanted[key]), key


def test_ignored_words_keep_fresh_values(build, save):
    source, model = build(1), build(2)
    before = snapshot(model)
    fresh = load_pretrained(model, save({"model": source.state_dict()}), ["label_enc", "bbox_embed"])
    assert fresh == sorted(key for key in before if fitting(key, "label_enc", "bbox_embed"))
    after, wanted = snapshot(model), snapshot(source)
    for key in after:
        assert torch.equal(after[key], before[key] if key in fresh else wanted[key]), key


def test_ignored_words_leave_out_what_could_not_be_used(build, save):
    source, model = build(1), build(2)
    weights = {key: value.clone() for key, value in source.state_dict().items()}
    weights["label_enc.weight"][0, 0] = float("nan")
    assert "label_enc.weight" in refusal(load_pretrained, model, save({"model": weights}))
    assert load_pretrained(model, save({"model": weights}), ["label_enc"]) == ["label_enc.weight"]


def test_ignored_words_leave_out_what_only_the_checkpoint_has(build, save):
    source, model = build(1, dec_layers=3), build(2)
    extra = [key for key in source.state_dict() if key not in model.state_dict()]
    assert extra
    words = ["decoder.layers.2", "bbox_embed.2", "class_embed.2"]
    assert all(fitting(key, *words) for key in extra)
    path = save({"model": source.state_dict()})
    assert "--finetune_ignore" in refusal(load_pretrained, model, path)
    assert load_pretrained(model, path, words) == []
    assert torch.equal(model.transformer.level_embed, source.transformer.level_embed)


@pytest.mark.parametrize("changes", [{"hidden_dim": 64}, {"dec_layers": 3}, {"enc_layers": 3}, {"key_aware": False}])
def test_fine_tuning_from_another_architecture_is_an_error(build, save, changes):
    model = build()
    before = snapshot(model)
    text = refusal(load_pretrained, model, save({"model": build(**changes).state_dict()}))
    assert "model.pth" in text and "--finetune_ignore" in text
    assert not differing(snapshot(model), before)


# queries

def test_the_first_queries_are_carried_over(build, save, caplog):
    source, model = build(1, num_queries=31), build(2)
    with caplog.at_level(logging.INFO):
        assert load_pretrained(model, save({"model": source.state_dict()})) == []
    wanted = snapshot(source)
    wanted["transformer.tgt_embed.weight"] = wanted["transformer.tgt_embed.weight"][:20]
    assert not differing(snapshot(model), wanted)
    assert "has 31 queries, this model 20: the first 20 of transformer.tgt_embed.weight are carried over" in caplog.text


def test_queries_that_the_checkpoint_lacks_are_fresh(build, save, caplog):
    source, model = build(1, num_queries=8), build(2)
    before, key = snapshot(model), "transformer.tgt_embed.weight"
    with caplog.at_level(logging.INFO):
        assert load_pretrained(model, save({"model": source.state_dict()})) == [key]
    after = snapshot(model)[key]
    assert torch.equal(after[:8], snapshot(source)[key]) and torch.equal(after[8:], before[key][8:])
    assert "the others are fresh" in caplog.text


# one-to-many supervision

SHARED, BRANCH = {"one2many": "shared"}, {"one2many": "branch", "num_queries_one2many": 6}


def test_further_heads_start_as_copies_of_the_loaded_ones(build, save, caplog):
    source, model = build(1), build(2, **SHARED)
    with caplog.at_level(logging.INFO):
        assert load_pretrained(model, save({"model": source.state_dict()})) == []
    assert "they start as copies of its heads" in caplog.text
    after, wanted = snapshot(model), snapshot(source)
    further = [key for key in after if key.startswith("one_to_many.")]
    assert further
    for key in after:
        assert torch.equal(after[key], wanted[key.removeprefix("one_to_many.")]), key


def test_further_heads_of_the_checkpoint_are_carried_over_or_left_out(build, save):
    source = build(1, **SHARED)
    source.one_to_many.class_embed[0].bias.data += 1  # it has learned
    path = save({"model": source.state_dict()})
    same, plain = build(2, **SHARED), build(2)
    assert load_pretrained(same, path) == load_pretrained(plain, path) == []
    assert not differing(snapshot(same), snapshot(source))
    assert all(torch.equal(value, snapshot(source)[key]) for key, value in snapshot(plain).items())


def test_further_heads_are_carried_over_by_class_too(build, save):
    source, model = build(1, num_classes=5, dn_labelbook_size=5), build(2, num_classes=4, dn_labelbook_size=4, **SHARED)
    before, wanted = snapshot(model), snapshot(source)
    fresh = load_pretrained(model, save({"model": source.state_dict(), "class_names": CATS}), class_names=PETS)
    after = snapshot(model)
    for key in ("one_to_many.class_embed.0.weight", "one_to_many.class_embed.0.bias"):
        assert key in fresh and torch.equal(after[key][:2], before[key][:2])
        for new, old in ((2, 1), (3, 4)):
            assert torch.equal(after[key][new], wanted[key.removeprefix("one_to_many.")][old])


def test_further_heads_that_are_ignored_keep_fresh_values(build, save):
    model = build(2, **SHARED)
    before = snapshot(model)
    fresh = load_pretrained(model, save({"model": build(1).state_dict()}), ["one_to_many"])
    assert fresh == sorted(key for key in before if fitting(key, "one_to_many"))
    assert all(torch.equal(snapshot(model)[key], before[key]) for key in fresh)


def test_a_branch_does_not_change_the_queries_that_detect(build, save):
    plain, branch, key = build(1), build(2, **BRANCH), "transformer.tgt_embed.weight"
    assert load_pretrained(branch, save({"model": plain.state_dict()})) == [key]
    assert torch.equal(snapshot(branch)[key][:20], snapshot(plain)[key])
    source, other = build(3, **BRANCH), build(4)
    assert load_pretrained(other, save({"model": source.state_dict()})) == []
    assert torch.equal(snapshot(other)[key], snapshot(source)[key][:20])


# classes by name

CATS, PETS = {1: "cat", 2: "dog", 4: "bird"}, {1: "horse", 2: "Cat", 3: "bird"}


def test_rows_of_classes_with_one_name_are_carried_over(build, save, caplog):
    source, model = build(1, num_classes=5, dn_labelbook_size=5), build(2, num_classes=4, dn_labelbook_size=4)
    before, wanted = snapshot(model), snapshot(source)
    with caplog.at_level(logging.INFO):
        fresh = load_pretrained(model, save({"model": wanted, "class_names": CATS}), class_names=PETS)
    after = snapshot(model)
    assert fresh == sorted(key for key in before if fitting(key, "class_embed", "label_enc"))
    for key in fresh:
        assert torch.equal(after[key][2], wanted[key][1]) and torch.equal(after[key][3], wanted[key][4])
        assert torch.equal(after[key][:2], before[key][:2])
    assert "by name: Cat, bird; fresh: horse" in caplog.text


def test_the_same_number_of_other_classes_does_not_keep_their_rows(build, save):
    source, model = build(1), build(2)
    before = snapshot(model)
    load_pretrained(model, save({"model": source.state_dict(), "class_names": CATS}), class_names={1: "dog", 2: "cow"})
    after, wanted = snapshot(model), snapshot(source)
    assert torch.equal(after["class_embed.0.weight"][1], wanted["class_embed.0.weight"][2])
    assert torch.equal(after["class_embed.0.weight"][2], before["class_embed.0.weight"][2])


def test_a_checkpoint_of_the_same_classes_is_taken_whole(build, save):
    source, model = build(1), build(2)
    assert load_pretrained(model, save({"model": source.state_dict(), "class_names": CATS}), class_names=CATS) == []
    assert not differing(snapshot(model), snapshot(source))


def test_a_released_checkpoint_knows_the_classes_of_coco(build, save):
    source, model = build(1, num_classes=91, dn_labelbook_size=91), build(2, num_classes=3, dn_labelbook_size=3)
    load_pretrained(model, save({"model": source.state_dict()}), class_names={1: "zebra", 2: "Person"})
    wanted = snapshot(source)["class_embed.0.bias"]
    assert COCO_CLASSES[24] == "zebra" and torch.equal(snapshot(model)["class_embed.0.bias"][1:], wanted[[24, 1]])


def test_classes_of_another_number_are_not_taken_for_those_of_coco(build, save, caplog):
    source, model = build(1, num_classes=366, dn_labelbook_size=366), build(2, num_classes=3, dn_labelbook_size=3)
    before = snapshot(model)
    fresh = load_pretrained(model, save({"model": source.state_dict()}), class_names={1: "person", 2: "car"})
    assert "does not name its classes" in caplog.text
    assert fresh == sorted(key for key in before if fitting(key, "class_embed", "label_enc"))
    assert all(torch.equal(snapshot(model)[key], before[key]) for key in fresh)


def test_the_row_for_no_object_stays_the_last():
    fresh, saved = torch.zeros(4, 2), torch.arange(12.0).reshape(6, 2)
    assert carry_rows(fresh, saved, {1: 3}, keep_last=True).tolist() == [[0, 0], [6, 7], [0, 0], [10, 11]]
    assert carry_rows(fresh, saved, {1: 3}, keep_last=False)[-1].tolist() == [0, 0]


def test_classes_without_a_row_are_left_out():
    assert carry_rows(torch.zeros(2, 1), torch.ones(2, 1), {1: 5, 7: 1}, keep_last=False).tolist() == [[0], [0]]


def test_the_table_counts_tensors_by_part(build, save, caplog):
    source, model = build(1), build(2, num_classes=5, dn_labelbook_size=5)
    with caplog.at_level(logging.INFO):
        load_pretrained(model, save({"model": source.state_dict()}), ["level_embed"], class_names=PETS)
    rows = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if len(line.split()) == 4}
    assert rows["label_enc"] == ["0", "1", "0"] and rows["transformer.level_embed"] == ["0", "0", "1"]
    assert int(rows["backbone"][0]) > 20


def test_a_checkpoint_without_weights_is_refused(build, save):
    assert "epoch" in refusal(load_pretrained, build(), save({"epoch": 3, "lr": 0.1}))
