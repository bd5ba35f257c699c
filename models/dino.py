"""DINO and Lite-DINO: backbone, two-stage transformer, box queries with denoising.

B batch, Q queries, C channels, K classes, L levels.
"""
import math

from torch import Tensor, nn

from models.denoising import Denoising, DenoisingMeta, prepend
from models.features import multi_scale_features
from models.heads import Heads, by_suffix, layer_predictions
from models.structures import DecoderOutput, FlatFeatures
from models.transformer import TwoStageTransformer
from util.nested_tensor import Images, NestedTensor
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
                 heads: Heads, label_enc: nn.Embedding, denoising: Denoising | None, aux_loss: bool = True):
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

    def forward(self, samples: Images, targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets (training only) with "labels" [n], "boxes" [n, 4] cxcywh.

        Returns "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1], "aux_outputs" (the same of each
        layer before the last), "interm_outputs" (of the encoder's proposals), and when training on targets
        "dn_outputs" with "dn_meta" for the denoising queries.
        """
        if not isinstance(samples, NestedTensor):
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
        layers = layer_predictions(decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.EPS)
        if not self.aux_loss:
            layers = layers[-1:]
        pad = 0 if meta is None else meta.num_queries
        matched = [{name: x[:, pad:] for name, x in layer.items()} for layer in layers]
        outputs = matched[-1] | {"aux_outputs": matched[:-1]}
        if meta is not None:
            noised = [{name: x[:, :pad] for name, x in layer.items()} for layer in layers]
            outputs |= {"dn_meta": meta, "dn_outputs": by_suffix(noised)}
        return outputs


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
