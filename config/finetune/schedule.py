# What fine-tuning on a small data set needs with any model: _base_ of the configs in this folder. Classes and image
# sizes come from the data. The schedule counts steps, so its length does not depend on the size of the data set.
num_classes = 'auto'
dn_labelbook_size = None

lr = 1e-4
lr_backbone = 1e-5
batch_size = 4
image_size = 640
num_queries = 300

amp = 'cuda'  # half precision only on GPUs, where it saves memory
onecyclelr = True  # warm-up, peak, and down to zero
epoch_steps = 100
epochs = 30
checkpoint_steps = 100
save_checkpoint_interval = 1000
early_stop = 10
clip_max_norm = 1.0
use_ema = True
ema_decay = 0.998
eval_batch_size = 4
nms_iou_threshold = 0.7  # short trainings leave duplicates
