# DETR R50-DC5 on COCO: python main.py -c config/SDETR/detr_r50_dc5.py --coco_path DIR
# COCO AP in the paper: 43.3 after 500 epochs. The dilated last stage has stride 16: four times the tokens.
_base_ = ['detr_r50.py']

dilation = True
