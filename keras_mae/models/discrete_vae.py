"""A discrete VAE: an image as a small grid of codes (arXiv 2102.12092, Section 2.1), for the dVAE row of Table 1d.

Laid out as DALL-E's published encoder and decoder, so that their weights can be converted (tools.convert_tokenizer);
`keras_mae.pretrain_tokenizer` trains one anew. Differs on purpose in training only: the decoder's scale has a floor,
so that pictures with flat parts cannot drive the likelihood to infinity.
"""

import math

import keras
from keras import ops

from keras_mae.models.token_networks import DOWNSAMPLING, PIXEL_MARGIN, TokenDecoder, TokenEncoder, squeezed_pixels
from keras_mae.models.weighted_mean import weighted_mean

CODE_DRAWS = 2  # uniform draws of which a sample's Gumbel noise is made
MIN_LOG_SCALE = -5.0  # half the step from one 8-bit value to the next, where that is smallest


def gumbel_noise(draws, shape):
    """Gumbel noise as a function of two uniform draws per sample.

    Noise for 8,192 codes at 14 x 14 places is 6 MB a sample, too much to travel with a batch. Here each value is a
    hash of its own number and of the sample's draws: whatever batch, replica or backend the sample is in, its noise
    is the same.

    Args:
        draws: (batch, 2) float32 from [0, 1), of 23 bits each.
        shape: (rows, columns, num_codes).

    Returns:
        (batch, rows, columns, num_codes) float32.
    """
    keys = ops.cast(draws * 2**23, "int32")  # (B, 2)
    numbers = ops.arange(math.prod(shape), dtype="int32")[None]
    bits = _scrambled(ops.bitwise_xor(numbers, _scrambled(keys[:, :1])))
    bits = _scrambled(ops.bitwise_xor(bits, keys[:, 1:]))
    uniform = (ops.cast(ops.bitwise_and(bits, 2**23 - 1), "float32") + 0.5) / 2**23  # in (0, 1), both ends out
    return ops.reshape(-ops.log(-ops.log(uniform)), (-1, *shape))


def _scrambled(x):
    """The finalizer of MurmurHash3, in int32 that wraps around: every bit depends on every other."""
    for shift, factor in ((16, 0x85EBCA6B - 2**32), (13, 0xC2B2AE35 - 2**32)):
        x = ops.bitwise_xor(x, _shifted(x, shift)) * factor
    return ops.bitwise_xor(x, _shifted(x, 16))


def _shifted(x, bits):
    """Right shift that brings zeros in, whatever the sign."""
    return ops.bitwise_and(ops.right_shift(x, bits), 2 ** (32 - bits) - 1)


@keras.saving.register_keras_serializable(package="keras_mae")
class DiscreteVAE(keras.Model):
    """Encodes images as codes and draws them again; trained through the Gumbel-softmax relaxation.

    `compile(optimizer)` and `fit` work on batches of the pipeline and on a plain uint8 array.

    Args:
        channels: of the images.
        num_codes: size of the vocabulary.
        hidden_dim: width of the encoder's first and the decoder's last group.
        blocks_per_group: residual blocks in each of the four groups.
        code_dim: width of a code's embedding in the decoder.
        temperature: of the relaxation: the lower, the closer to one code a place. `anneal` replaces it in training.
        kl_weight: of the divergence from equally likely codes, published as 6.6. `anneal` replaces it in training.
        seed: of the noise, where the batch brings none.

    Call arguments:
        features: uint8 images (batch, height, width, channels), or a dict with `image` and, optionally, `code_noise`
            (batch, 2) float32 from [0, 1). With `code_noise` (the commands send it with every batch) the Gumbel noise
            is a function of it alone, so that replicas never repeat each other and a resumed run repeats itself;
            without it the layer draws its own; under tf.distribute, replicas may then draw the same noise.
        training: whether codes are relaxed samples, or the likeliest ones.

    Output shape:
        A dict: `scores` (batch, height / 8, width / 8, num_codes) of the encoder, `pixels` (batch, height, width,
        2 * channels) of the decoder.
    """

    def __init__(
        self,
        channels=3,
        num_codes=8192,
        hidden_dim=256,
        blocks_per_group=2,
        code_dim=128,
        temperature=1.0,
        kl_weight=6.6,
        seed=None,
        **kwargs,
    ):
        kwargs.setdefault("name", "discrete_vae")
        super().__init__(autocast=False, **kwargs)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0. Received: {temperature}")
        self.channels = channels
        self.num_codes = num_codes
        self.hidden_dim = hidden_dim
        self.blocks_per_group = blocks_per_group
        self.code_dim = code_dim
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.seed = seed
        policy = {"dtype": self.dtype_policy}
        self.encoder = TokenEncoder(channels, num_codes, hidden_dim, blocks_per_group, name="encoder", **policy)
        self.decoder = TokenDecoder(channels, hidden_dim, blocks_per_group, code_dim, name="decoder", **policy)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._schedules = None

    def build(self, input_shape=None):
        if not self.built:
            self.encoder.build()
            self.decoder.build((None, None, None, self.num_codes))
            self.built = True

    def anneal(self, optimizer, temperature, kl_weight):
        """From now on temperature and KL weight follow the updates of `optimizer` (which a checkpoint restores).

        Args:
            optimizer: trains this model.
            temperature: number of updates done -> temperature, a schedule of `keras.optimizers.schedules` say.
            kl_weight: number of updates done -> KL weight.
        """
        self._schedules = lambda: (temperature(optimizer.iterations), kl_weight(optimizer.iterations))

    def training_weights(self):
        """(temperature, KL weight) of the next update."""
        return (self.temperature, self.kl_weight) if self._schedules is None else self._schedules()

    def call(self, features, training=False):
        features = features if isinstance(features, dict) else {"image": features}
        scores = self.encoder(features["image"])  # (B, h, w, num_codes)
        if training:
            codes = self.relaxed_codes(scores, features.get("code_noise"))
        else:
            codes = ops.one_hot(ops.argmax(scores, axis=-1), self.num_codes, dtype="float32")
        return {"scores": scores, "pixels": self.decoder(codes)}

    def relaxed_codes(self, scores, draws=None):
        """Gumbel-softmax samples: (batch, rows, columns, num_codes), summing to 1 at every place."""
        if draws is None:
            draws = keras.random.uniform((ops.shape(scores)[0], CODE_DRAWS), dtype="float32", seed=self.seed_generator)
        temperature, _ = self.training_weights()
        return ops.softmax((scores + gumbel_noise(draws, scores.shape[1:])) / temperature, axis=-1)

    def sample_losses(self, features, labels, outputs):
        """The loss of each sample: (batch,) float32. Labels are not used."""
        return self.sample_metrics(features, labels, outputs)["loss"]

    def sample_metrics(self, features, labels, outputs):
        """Per-sample values whose weighted means are reported: (batch,) each.

        `reconstruction` is in nats a pixel value, `kl` in nats a code, log(num_codes) at most; `loss` is their sum
        over the image, the latter times the KL weight, divided by the number of pixel values.
        """
        images = features["image"] if isinstance(features, dict) else features
        reconstruction = ops.mean(logit_laplace_losses(images, outputs["pixels"]), axis=(1, 2, 3))  # (B,)
        kl = ops.mean(divergences_from_uniform(outputs["scores"]), axis=(1, 2))  # (B,)
        _, kl_weight = self.training_weights()
        loss = reconstruction + kl_weight * kl / (DOWNSAMPLING**2 * self.channels)
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return weighted_mean(self.sample_losses(x, y, y_pred), sample_weight)

    def reconstruct(self, images):
        """What the likeliest codes keep of the images: uint8 (batch, height, width, channels)."""
        means = self(images)["pixels"][..., : self.channels]
        pixels = (ops.sigmoid(means) - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)
        return ops.cast(ops.clip(ops.round(pixels * 255.0), 0, 255), "uint8")

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "num_codes": self.num_codes,
            "hidden_dim": self.hidden_dim,
            "blocks_per_group": self.blocks_per_group,
            "code_dim": self.code_dim,
            "temperature": self.temperature,
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }


def logit_laplace_losses(images, distribution):
    """-log p(x) of every squeezed pixel value under p(x) = exp(-|logit(x) - mean| / b) / (2 b x (1 - x)).

    Args:
        images: uint8 (batch, height, width, channels).
        distribution: (batch, height, width, 2 * channels): means, then log b.

    Returns:
        (batch, height, width, channels) float32, in nats.
    """
    x = squeezed_pixels(images)
    mean, log_scale = ops.split(distribution, 2, axis=-1)
    log_scale = ops.maximum(log_scale, MIN_LOG_SCALE)
    log_x, log_rest = ops.log(x), ops.log(1 - x)
    error = ops.abs(log_x - log_rest - mean)
    return error * ops.exp(-log_scale) + log_scale + math.log(2) + log_x + log_rest


def divergences_from_uniform(scores):
    """Kullback-Leibler divergence of softmax(scores) from equally likely codes: scores without the last axis, nats."""
    log_probabilities = ops.log_softmax(scores, axis=-1)
    negative_entropy = ops.sum(ops.exp(log_probabilities) * log_probabilities, axis=-1)
    return negative_entropy + math.log(scores.shape[-1])
