# The small Lite-DINO at up to 640 px, for a GPU:
#   python main.py -c config/finetune/efficientnet_lite0_640.py --coco_path DIR
_base_ = ['efficientnet_lite0.py']

image_size = 640
batch_size = 32
lr = 7e-4
lr_backbone = 1.5e-4
epochs = 12
eval_interval = 4
eval_batch_size = 8
