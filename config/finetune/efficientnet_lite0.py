# A small Lite-DINO H3L1-(2+1)x3 on your own data, from an ImageNet backbone that needs no download. Trains on a CPU:
#   python main.py -c config/finetune/efficientnet_lite0.py --coco_path DIR
_base_ = ['../LiteDINO/r50_h3l1_2p1x3.py', 'schedule.py']

backbone = 'timm:tf_efficientnet_lite0'
backbone_freeze_keywords = ['conv_stem', 'blocks.0.', 'blocks.1.']

hidden_dim = 128
nheads = 8
dim_feedforward = 512
dec_layers = 3
num_queries = 100
num_select = 100
dn_number = 60

lr = 5e-4
lr_backbone = 1e-4
epochs = 24
image_size = 288
eval_size_factor = 1.125
