"""Routing-path predictor: from token ids to the experts of every MoE layer, before the first layer runs.

After ExpertFlow (arXiv 2410.17954): a small T5-style encoder-decoder over the sequence with one light head per MoE
layer. What differs: attention is causal in encoder, decoder and cross attention, where the paper's encoder looks both
ways. Row t then depends on tokens up to t only: rows of a prompt in training are what decoding will see, one pass
serves prompts and decoding alike, and later tokens never change an earlier prediction. The decoder reads the same
tokens as the encoder, and cross attention has a relative position bias too, since both sides count the same
positions. And there are heads for the experts of the token behind row t, which nobody knows yet: what a cache should
keep for the next pass.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget
from runtime.experts.t5_layers import RelativeBias, T5Layer

DROPOUT = 0.2  # of the heads of the token behind: 0 fits the training prompts


class _Stack(nn.Module):
    """Layers of an encoder, or of a decoder that attends to it, and the norm behind them."""

    def __init__(self, settings: PredictorSettings, num_layers: int, cross: bool, dropout: float) -> None:
        super().__init__()
        self.self_bias = RelativeBias(settings)
        self.cross_bias = RelativeBias(settings) if cross else None
        self.layers = nn.ModuleList(T5Layer(settings, cross, dropout) for _ in range(num_layers))
        self.norm = nn.RMSNorm(settings.hidden_size, eps=1e-6)

    def forward(self, x: Tensor, source: Tensor | None) -> Tensor:
        """x, source [B, S, H] -> [B, S, H]."""
        length = x.shape[1]
        self_bias: Tensor = self.self_bias(length)
        cross_bias: Tensor | None = None if self.cross_bias is None else self.cross_bias(length)
        for layer in self.layers:
            x = layer(x, source, self_bias, cross_bias)
        normed: Tensor = self.norm(x)
        return normed


class FollowingHeads(nn.Module):
    """Of the token behind: one hidden layer, since what comes next has to be guessed first. Weights begin at 0 and take
    no random number, so that a predictor is the same with and without them until they are trained.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up, self.bias = nn.Parameter(torch.zeros(hidden, inputs)), nn.Parameter(torch.zeros(hidden))
        self.down, self.prior = nn.Parameter(torch.zeros(outputs, hidden)), nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[..., H + P] -> [..., L E]."""
        hidden = functional.dropout(functional.linear(features, self.up, self.bias).relu(), DROPOUT, self.training)
        return functional.linear(hidden, self.down, self.prior)


class RoutingPredictor(nn.Module):
    """Token ids to logits of experts. Sequences are padded at their ends with any id: causality keeps padding out of
    the rows before it, and rows of padding mean nothing.

    Each token is its embedding plus, for token_rank > 0, a projection of its profile: what counting the training
    prompts says of its id (`token_profiles.py`). The logits get the profile's own prediction, too. Not in the paper:
    profiles are counted, so rare ids start from all that is known of them, and attention has the context to learn.
    """

    profiles: Tensor  # [V, token_rank + 1]; or [V, 0]

    def __init__(self, target: PredictorTarget, settings: PredictorSettings, dropout: float = 0.0) -> None:
        super().__init__()
        self.target, self.settings, self.dropout = target, settings, dropout
        self.embedding = nn.Embedding(target.vocab_size, settings.hidden_size)
        self.encoder = _Stack(settings, settings.encoder_layers, False, dropout)
        self.decoder = _Stack(settings, settings.decoder_layers, True, dropout)
        outputs = target.num_moe_layers * target.num_experts
        self.heads = nn.Linear(settings.hidden_size, outputs)  # one per layer, side by side
        profile = settings.token_rank + 1 if settings.token_rank else 0
        self.register_buffer("profiles", torch.zeros(target.vocab_size, profile))
        self.profile_projection = nn.Parameter(torch.eye(profile, settings.hidden_size))
        self.profile_heads = nn.Parameter(torch.zeros(profile, outputs))
        self.following = FollowingHeads(settings.hidden_size + profile, settings.following_size, outputs)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embedding.weight.device

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, S], S <= window -> logits [B, S, L, E]."""
        return self.logits(self.features(tokens))

    def features(self, tokens: Tensor, profiles: Tensor | None = None) -> Tensor:
        """tokens [B, S], S <= window -> [B, S, H + P], what the heads read. profiles [B, S, P]: other than the ids'."""
        profiles = self.profiles[tokens] if profiles is None else profiles
        embedded = self.embedding(tokens) + profiles @ self.profile_projection  # [B, S, H]
        embedded = functional.dropout(embedded, self.dropout, self.training)
        decoded = self.decoder(embedded, self.encoder(embedded, None))
        return torch.cat((decoded, profiles), -1)

    def logits(self, features: Tensor) -> Tensor:
        """features [..., H + P] -> [..., L, E]."""
        hidden_size = self.settings.hidden_size
        decoded, profiles = features[..., :hidden_size], features[..., hidden_size:]
        return self._by_layer(self.heads(decoded) + profiles @ self.profile_heads)

    def following_logits(self, features: Tensor) -> Tensor:
        """Of the token behind each: features [..., H + P] -> [..., L, E]."""
        return self._by_layer(self.following(features))

    def _by_layer(self, outputs: Tensor) -> Tensor:
        """[..., L E] -> [..., L, E]."""
        return outputs.view(*outputs.shape[:-1], self.target.num_moe_layers, self.target.num_experts)


def predictor_bytes(predictor: RoutingPredictor) -> int:
    """Bytes of its weights and profiles."""
    return sum(tensor.numel() * tensor.element_size() for tensor in predictor.state_dict().values())
