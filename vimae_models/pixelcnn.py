"""Autoregressive decoders p(x|z) = prod_i p(x_i | x_<i, z), pixels in raster order.

theta of pixel i is a function of z and the pixels before i; the channels of a pixel come together,
and how they depend on each other is the likelihood's matter. `decoder(z, x)` gives theta for all
pixels of a known x at once; `decoder.sample` draws one pixel after the other.

Causality comes from where convolutions are padded and cropped, not from masked weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from . import distributed
from .likelihoods import Likelihood

Progress = Callable[[int, int], None]
"""Called with the pixels done and the pixels in all."""


class Autoregressive(nn.Module):
    """What both decoders share.

    Args:
        data_shape: (C, H, W) of the images.
    """

    def __init__(self, data_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.data_shape = data_shape

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) drawn from p(x|z), with one pass of the network per pixel.

        Args:
            z: codes (B, code_dim).
            likelihood: of a pixel given theta.
            generator: source of the noise; None is torch's default generator.
            progress: called after every pixel.
        """
        _, height, width = self.data_shape
        x = z.new_zeros(len(z), *self.data_shape)
        for i in range(height * width):
            row, column = divmod(i, width)
            at = slice(None), slice(None), slice(row, row + 1), slice(column, column + 1)
            x[at] = likelihood.sample(self(z, x)[at], generator)
            if progress is not None:
                progress(i + 1, height * width)
        return x


class PixelCNN(Autoregressive):
    """Conditional gated PixelCNN: a vertical and a horizontal stack of 7 gated layers of 64.

    Every layer is tanh(a + V z) * sigmoid(b + U z), a and b being convolutions: 7x7 in the first
    layer, 5x5 after it, cropped to what may be seen. The vertical stack sees the rows above, the
    horizontal one also the pixels to the left, and the vertical stack through a 1x1 convolution. Two
    1x1 layers with ReLU end it. InfoVAE uses "a simplified version" of the network and prints no
    sizes; these are ours.

    Args:
        data_shape: (C, H, W).
        channels: of theta.
        code_dim: of z.
        width: factor on the 64.

    Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders (2016), eqs. 3
    to 5 and figure 2; InfoVAE, app. B.1.
    """

    def __init__(
        self,
        data_shape: tuple[int, int, int],
        channels: int,
        code_dim: int,
        width: float = 1.0,
    ) -> None:
        super().__init__(data_shape)
        filters = max(1, round(64 * width))
        first = _GatedLayer(data_shape[0], filters, code_dim, 7, first=True)
        rest = [_GatedLayer(filters, filters, code_dim, 5, first=False) for _ in range(6)]
        self.layers = nn.ModuleList([first, *rest])
        self.output = nn.Sequential(
            nn.ReLU(), nn.Conv2d(filters, filters, 1), nn.ReLU(), nn.Conv2d(filters, channels, 1)
        )

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """theta (B, channels, H, W) of images x (B, C, H, W) in [0, 1] and codes z."""
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, z)
        return self.output(h)  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        likelihood: Likelihood,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The same, with one pass of the vertical stack per row and, per pixel, of that row alone."""
        _, height, width = self.data_shape
        x = z.new_zeros(len(z), *self.data_shape)
        conditions = [layer.conditions(z) for layer in self.layers]  # type: ignore[operator]
        for row in range(height):
            v, links = x[:, :, : row + 1], []
            for layer, (of_v, _) in zip(self.layers, conditions, strict=True):
                v, link = layer.down(v, of_v)  # type: ignore[operator]
                links.append(link[:, :, row:])
            line = x[:, :, row : row + 1]
            for column in range(width):
                h = line
                for layer, link, (_, of_h) in zip(self.layers, links, conditions, strict=True):
                    h = layer.along(h, link, of_h)  # type: ignore[operator]
                pixel = slice(column, column + 1)
                line[..., pixel] = likelihood.sample(self.output(h)[..., pixel], generator)
                if progress is not None:
                    progress(row * width + column + 1, height * width)
        return x


class _GatedLayer(nn.Module):
    """One layer of both stacks. The first one must not see the pixel itself."""

    def __init__(
        self, inputs: int, filters: int, code_dim: int, kernel: int, *, first: bool
    ) -> None:
        super().__init__()
        half = kernel // 2
        self.first = first
        # Rows r - half .. r - 1 in the first layer, r - half .. r after it; columns likewise.
        reach = half if first else half + 1
        # The first layer makes one row and column too many, and the last of them is cut off.
        self.vertical_pad = (half, half, half, 0)
        self.horizontal_pad = (half, 0, 0, 0)
        self.vertical = nn.Conv2d(inputs, 2 * filters, (reach, kernel))
        self.horizontal = nn.Conv2d(inputs, 2 * filters, (1, reach))
        self.link = nn.Conv2d(2 * filters, 2 * filters, 1)
        self.residual = nn.Conv2d(filters, filters, 1)
        self.condition = nn.Linear(code_dim, 4 * filters)

    def forward(self, v: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        of_v, of_h = self.conditions(z)
        v, link = self.down(v, of_v)
        return v, self.along(h, link, of_h)

    def conditions(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What z adds to the vertical and to the horizontal stack, at every pixel."""
        of_v, of_h = self.condition(z)[:, :, None, None].chunk(2, 1)
        return of_v, of_h

    def down(self, v: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """The vertical stack, and what the horizontal one sees of it."""
        up = self.vertical(F.pad(v, self.vertical_pad))[:, :, : v.shape[2]]
        return _gated(up + of_v), self.link(up)

    def along(self, h: Tensor, link: Tensor, of_h: Tensor) -> Tensor:
        """The horizontal stack: every row by itself."""
        left = self.horizontal(F.pad(h, self.horizontal_pad))[..., : h.shape[3]]
        out: Tensor = self.residual(_gated(left + link + of_h))
        return out if self.first else h + out


def _gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class PixelCNNPlusPlus(Autoregressive):
    """Conditional PixelCNN++: 6 stages of 5 gated residual blocks of 160 at 3 resolutions.

    One stream sees the rows above, the other also the pixels to the left. Three stages go down
    (H, H/2, H/4), three go up again, with connections between blocks of the same size. z enters
    every block linearly. Weights are normalised, without the data-dependent start of the original;
    dropout 0.5.

    Args:
        data_shape: (C, H, W) with H and W multiples of 4.
        channels: of theta.
        code_dim: of z.
        width: factor on the 160.

    Raises:
        ValueError: H or W not a multiple of 4.

    Source: Salimans et al., PixelCNN++ (2017), sec. 2 and figure 2; InfoVAE, app. B.1.
    """

    blocks = 5
    resolutions = 3

    def __init__(
        self,
        data_shape: tuple[int, int, int],
        channels: int,
        code_dim: int,
        width: float = 1.0,
    ) -> None:
        super().__init__(data_shape)
        inputs, rows, columns = data_shape
        if rows % 4 or columns % 4:
            raise ValueError(
                "network 'pixelcnn++' takes images whose height and width are multiples of 4; "
                f"these are {rows}x{columns}"
            )
        f = max(1, round(160 * width))
        # A channel of ones tells the image from its padding.
        self.first_down = _Down(inputs + 1, f, (2, 3))
        self.first_row = _Down(inputs + 1, f, (1, 3))
        self.first_right = _DownRight(inputs + 1, f, (2, 1))

        def block(convolution: type[_Down] | type[_DownRight], skip: int) -> nn.Module:
            return _Block(convolution, f, skip, code_dim)

        self.encoding = nn.ModuleList()
        self.decoding = nn.ModuleList()
        for level in range(self.resolutions):
            self.encoding.append(
                nn.ModuleList(
                    nn.ModuleList([block(_Down, 0), block(_DownRight, f)])
                    for _ in range(self.blocks)
                )
            )
            # Every state of the way down is used once on the way up: one more after a halving.
            self.decoding.append(
                nn.ModuleList(
                    nn.ModuleList([block(_Down, f), block(_DownRight, 2 * f)])
                    for _ in range(self.blocks + (level > 0))
                )
            )
        changes = range(self.resolutions - 1)
        self.halvings = nn.ModuleList(
            nn.ModuleList([_Down(f, f, (2, 3), 2), _DownRight(f, f, (2, 2), 2)]) for _ in changes
        )
        self.doublings = nn.ModuleList(
            nn.ModuleList([_Doubling(f, (2, 3)), _Doubling(f, (2, 2))]) for _ in changes
        )
        self.output = weight_norm(nn.Conv2d(f, channels, 1))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """theta (B, channels, H, W) of images x (B, C, H, W) in [0, 1] and codes z."""
        x = torch.cat([2 * x - 1, torch.ones_like(x[:, :1])], 1)
        u = _shift_down(self.first_down(x))
        ul = _shift_down(self.first_row(x)) + _shift_right(self.first_right(x))
        us, uls = [u], [ul]
        for level, stage in enumerate(self.encoding):
            for down, right in stage:  # type: ignore[attr-defined]
                u = down(u, None, z)
                ul = right(ul, u, z)
                us.append(u)
                uls.append(ul)
            if level < len(self.halvings):
                down, right = self.halvings[level]  # type: ignore[misc]
                u, ul = down(u), right(ul)
                us.append(u)
                uls.append(ul)
        u, ul = us.pop(), uls.pop()
        for level, stage in enumerate(self.decoding):
            for down, right in stage:  # type: ignore[attr-defined]
                u = down(u, us.pop(), z)
                ul = right(ul, torch.cat([u, uls.pop()], 1), z)
            if level < len(self.doublings):
                down, right = self.doublings[level]  # type: ignore[misc]
                u, ul = down(u), right(ul)
        return self.output(F.elu(ul))  # type: ignore[no-any-return]


class _Down(nn.Module):
    """A convolution that sees its own row and those above, of columns on both sides."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 3), stride: int = 1
    ) -> None:
        super().__init__()
        side = kernel[1] // 2
        self.padding = (side, side, kernel[0] - 1, 0)
        self.convolution = weight_norm(nn.Conv2d(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, self.padding))  # type: ignore[no-any-return]


class _DownRight(nn.Module):
    """A convolution that sees its own pixel, those above and those to the left of both."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 2), stride: int = 1
    ) -> None:
        super().__init__()
        self.padding = (kernel[1] - 1, 0, kernel[0] - 1, 0)
        self.convolution = weight_norm(nn.Conv2d(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, self.padding))  # type: ignore[no-any-return]


class _Doubling(nn.Module):
    """Twice the rows and columns; row 2 r + i comes from row r, and so do columns of a (2, 2)."""

    def __init__(self, filters: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        wide = kernel[1] == 3
        self.convolution = weight_norm(
            nn.ConvTranspose2d(
                filters,
                filters,
                kernel,
                stride=2,
                padding=(0, 1 if wide else 0),
                output_padding=(0, 1 if wide else 0),
            ),
            dim=1,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x)  # type: ignore[no-any-return]


class _Dropout(nn.Dropout):
    """Dropout for which the processes of a group draw as one, see `distributed.rows`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.group() is None:
            return super().forward(x)

        def kept(n: int) -> Tensor:
            return F.dropout(x.new_ones(n, *x.shape[1:]), self.p)

        return x * distributed.rows(kept, len(x))


class _Block(nn.Module):
    """x + a * sigmoid(b), (a, b) two convolutions of x, beside it of the skip connection, and z."""

    def __init__(
        self, convolution: type[_Down] | type[_DownRight], filters: int, skip: int, code_dim: int
    ) -> None:
        super().__init__()
        self.first = convolution(2 * filters, filters)
        self.skip = weight_norm(nn.Conv2d(2 * skip, filters, 1)) if skip else None
        self.dropout = _Dropout(0.5)
        self.second = convolution(2 * filters, 2 * filters)
        self.condition = nn.Linear(code_dim, 2 * filters)

    def forward(self, x: Tensor, skip: Tensor | None, z: Tensor) -> Tensor:
        y = self.first(_both_elu(x))
        if self.skip is not None and skip is not None:
            y = y + self.skip(_both_elu(skip))
        y = self.second(self.dropout(_both_elu(y))) + self.condition(z)[:, :, None, None]
        a, b = y.chunk(2, 1)
        out: Tensor = x + a * torch.sigmoid(b)
        return out


def _both_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


def _shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def _shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0, 0, 0))[..., :-1]
