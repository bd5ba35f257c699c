from tests.tools.published import published
from tools.detector_keys import keys_from_state


def test_every_key_is_read_from_the_shapes():
    found = keys_from_state(published("lite_dino_r50_h3l1_2p1x3"))
    assert found == {
        "modelname": "dino", "embed_init_tgt": True, "num_queries": 900, "num_classes": 91, "dn_labelbook_size": 91,
        "hidden_dim": 256, "num_feature_levels": 4, "dim_feedforward": 2048, "enc_layers": 6,
        "dec_layers": 6, "enc_n_points": 4, "dec_n_points": 4, "num_expansion": 3, "same_loc": False, "key_aware": True,
        "proj_key": False, "backbone": "resnet50", "return_interm_indices": [1, 2, 3]}
