# A wider model for a GPU, at up to 640 px:
#   python main.py -c config/finetune/efficientnet_lite0_640.py --coco_path DIR
_base_ = ['efficientnet_lite0.py']

hidden_dim = 192
nheads = 6
dim_feedforward = 768
dec_layers = 4

image_size = 640
data_aug_color = 0.3
batch_size = 16
lr = 6e-4
lr_backbone = 1.5e-4
epochs = 18
eval_interval = 3
early_stop = 4
eval_batch_size = 8
