# DETR R50 on COCO: python main.py -c config/SDETR/detr_r50.py --coco_path DIR
# COCO AP in the paper: 42.0 after 500 epochs (300 epochs, lr_drop 200, is the published default).
_base_ = ['sdetr_r50.py']

modelname = 'detr'
return_interm_indices = [3]
stage_levels = None
enc_layers = 6
enc_nheads = None
dec_layers = 6
epochs = 300
lr_drop = 200
