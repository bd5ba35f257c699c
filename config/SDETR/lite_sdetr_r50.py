# Lite-SDETR R50 on COCO: python main.py -c config/SDETR/lite_sdetr_r50.py --coco_path DIR
# The interleaved encoder of Lite-DINO H3L1-(2+1)x3 in place of SDETR's encoders; the stacked decoder reads its memory.
_base_ = ['sdetr_r50.py']

modelname = 'lite_sdetr'
return_interm_indices = [1, 2, 3]
num_feature_levels = 4  # strides 8, 16, 32, 64
enc_layers = 6
enc_nheads = None
dec_layers = 3  # of each stage
num_expansion = 3
enc_scale = 3
stage_levels = [[2], [1]]  # stride 32, then 16; a third entry [0] is a stage over stride 8
