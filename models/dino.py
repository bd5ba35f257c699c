"""DINO and Lite-DINO: backbone, two-stage transformer, box queries with denoising.

B batch, Q queries, C channels, K classes, L levels.
"""
import copy
import math

from torch import Tensor, nn

from models.denoising import Denoising, DenoisingMeta, prepend
from models.features import multi_scale_features
from models.layers.mlp import MLP
from models.structures import DecoderOutput, FlatFeatures
from models.transformer import TwoStageTransformer
from util.box_ops import inverse_sigmoid
from util.nested_tensor import NestedTensor
from util.precision import at_least_float32


class DINO(nn.Module):
    """A detector in which the encoder alone decides between DINO and Lite-DINO.

    heads: how many box and class heads differ between the decoder's layers and the encoder's proposals, see `Heads`.
    PARTS names the modules of each part that the benchmark counts.
    """

    PARTS = {
        "backbone": ["backbone.0"],
        "input projection": ["input_proj"],
        "encoder": ["transformer.encoder"],
        "query selection": ["transformer.enc_output", "transformer.enc_output_norm",
                            "transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed"],
        "decoder": ["transformer.decoder"],
        "heads": ["class_embed", "bbox_embed"],
    }

    def __init__(self, backbone: nn.Module, transformer: TwoStageTransformer, input_proj: nn.ModuleList,
                 heads: "Heads", label_enc: nn.Embedding, denoising: Denoising | None, aux_loss: bool = True):
        super().__init__()
        self.transformer = transformer
        self.label_enc = label_enc
        self.input_proj = input_proj
        self.backbone = backbone
        self.bbox_embed, self.class_embed = heads.bbox_embed, heads.class_embed
        transformer.decoder.bbox_embed, transformer.decoder.class_embed = heads.bbox_embed, heads.class_embed
        transformer.enc_out_bbox_embed = heads.enc_out_bbox_embed
        transformer.enc_out_class_embed = heads.enc_out_class_embed
        self.num_classes = heads.class_embed[0].out_features
        self.denoising = denoising
        self.aux_loss = aux_loss

    def forward(self, samples: NestedTensor | list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets (training only) with "labels" [n], "boxes" [n, 4] cxcywh.

        Returns "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1], "aux_outputs" (the same of each
        layer before the last), "interm_outputs" (of the encoder's proposals), and when training on targets
        "dn_outputs" with "dn_meta" for the denoising queries.
        """
        if isinstance(samples, list):
            samples = NestedTensor.from_list(samples)
        memory = self.transformer.encoder(self.features(samples))
        proposals = self.transformer.select(memory)
        queries, meta = self.transformer.queries(proposals), None
        if self.training and targets is not None and self.denoising is not None:
            noised = self.denoising.prepare(targets, self.label_enc, self.num_classes)
            if noised is not None:
                noise, meta = noised
                queries = prepend(noise, queries, meta)
        decoded = self.transformer.decode(queries, memory)
        # Keeps label_enc in the graph of every batch: DDP wants a gradient for it on every rank.
        decoded.hidden[-1] = decoded.hidden[-1] + 0 * self.label_enc.weight[0]
        return self._outputs(decoded, meta) | {"interm_outputs": {
            "pred_logits": at_least_float32(self.transformer.enc_out_class_embed(proposals.content)),
            "pred_boxes": at_least_float32(proposals.box_logits).sigmoid()}}

    def features(self, samples: NestedTensor) -> FlatFeatures:
        """Tokens of all levels: the backbone's maps, and coarser ones made from the last by strided convolutions."""
        return multi_scale_features(samples, self.backbone, self.input_proj, self.transformer.level_embed)

    def _outputs(self, decoded: DecoderOutput, meta: DenoisingMeta | None) -> dict:
        layers = [{"pred_logits": at_least_float32(class_head(hidden)),
                   "pred_boxes": at_least_float32(box_head(hidden) + inverse_sigmoid(reference)).sigmoid()}
                  for class_head, box_head, hidden, reference
                  in zip(self.class_embed, self.bbox_embed, decoded.hidden, decoded.reference)]
        if not self.aux_loss:
            layers = layers[-1:]
        pad = 0 if meta is None else meta.num_queries
        matched = [{name: x[:, pad:] for name, x in layer.items()} for layer in layers]
        outputs = matched[-1] | {"aux_outputs": matched[:-1]}
        if meta is not None:
            noised = [{name: x[:, :pad] for name, x in layer.items()} for layer in layers]
            names = [f"_{i}" for i in range(len(layers) - 1)] + [""]
            outputs |= {"dn_meta": meta, "dn_outputs": dict(zip(names, noised))}
        return outputs


class Heads:
    """Box and class heads of the decoder's layers and of the encoder's proposals, each shared or separate."""

    def __init__(self, dim: int, num_classes: int, num_layers: int, share_bbox: bool = True, share_class: bool = True,
                 share_enc_bbox: bool = False, share_enc_class: bool = False):
        def one_a_layer(head: nn.Module, share: bool) -> nn.ModuleList:
            return nn.ModuleList(head if share else copy.deepcopy(head) for _ in range(num_layers))

        bbox, classes = MLP(dim, dim, 4, 3), nn.Linear(dim, num_classes)
        nn.init.zeros_(bbox.layers[-1].weight)
        nn.init.zeros_(bbox.layers[-1].bias)
        nn.init.constant_(classes.bias, -math.log(99))  # prior probability 0.01 (focal loss)
        self.bbox_embed = one_a_layer(bbox, share_bbox)
        self.class_embed = one_a_layer(classes, share_class)
        self.enc_out_bbox_embed = bbox if share_enc_bbox else copy.deepcopy(bbox)
        self.enc_out_class_embed = classes if share_enc_class else copy.deepcopy(classes)


def make_input_proj(in_channels: list[int], num_levels: int, dim: int) -> nn.ModuleList:
    """1x1 convolutions for the backbone's maps, then 3x3 ones of stride 2 for further levels, with GroupNorm."""
    convs = [nn.Conv2d(c, dim, kernel_size=1) for c in in_channels[:num_levels]]
    for level in range(len(in_channels), num_levels):
        source = in_channels[-1] if level == len(in_channels) else dim
        convs.append(nn.Conv2d(source, dim, kernel_size=3, stride=2, padding=1))
    for conv in convs:
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)
    groups = math.gcd(32, dim // 4)  # 32, as published, where that leaves at least four channels a group
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(groups, dim)) for conv in convs)
