# Lite-DINO R50 on your own data, from a COCO checkpoint where you have one:
#   python main.py -c config/finetune/r50.py --coco_path DIR --pretrain_model_path CHECKPOINT
_base_ = ['../LiteDINO/r50_h3l1_2p1x3.py', 'schedule.py']
