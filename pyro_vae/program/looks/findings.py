"""What has been found out of the data plate: what it does not keep apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from pyro.poutine.trace_struct import Trace

from pyro_vae.program.looks.own_weights import Counted, counted_of, weights_of


@dataclass(frozen=True)
class Dependence:
    """What the plate of the data does not keep apart.

    Arguments:
        spanning: Sites outside the plate whose density depends on latents inside it.
        of_rows: Observed sites and factors outside the plate that depend on the rows of the batch,
            and on no latent inside.
        sums: Those of both that a look has found to be sums over the rows.
        means: Those that one has found to be means of them.
        no_sums: Those that one has found to be neither.
        restless: Those of both that are another number at each run: noise, or a counter of calls.
        carried: Latents of a datum that are transforms of an auxiliary site of the guide, by name:
            that site has their density.
        together: Those that are transforms of such sites outside the plate, with their names: the
            latents of all data have one density.
        unscored: Auxiliary sites of the guide inside the plate that carry no latent: the model has
            no density for them.
        informed: Global latents whose density, in the guide or in the model, depends on the rows.
        priors: Those whose density in the model does.
        unplated: Latents outside the plate that are as many as the rows.
        following: Global latents that the guide draws after latents inside, and given these.
        beside: Sites of the model inside the plate whose density, for a datum, depends on the rows
            beside it, or on their number.
        beside_in_guide: Sites of the guide inside the plate whose density does.
        by_count: Sites inside the plate, and global latents, whose weight does.
        redrawn: Points of the guide that no site of it draws, and that are others at each run:
            ``Delta(z, log_density=...)`` of a draw of its own.
        fixed: Latents with a density of which the guide has one point, the same at each run.
        counted: Such weights, and one of all that is inside, times the rows of each batch looked
            at: N always (or all rows of as many batches) where a program scales by N/B itself. Or
            these rows by the one weight of all global latents, where the data have none: B/N.
    """

    spanning: tuple[str, ...] = ()
    of_rows: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    no_sums: tuple[str, ...] = ()
    restless: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    informed: tuple[str, ...] = ()
    priors: tuple[str, ...] = ()
    unplated: tuple[str, ...] = ()
    following: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    beside_in_guide: tuple[str, ...] = ()
    by_count: tuple[str, ...] = ()
    redrawn: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    counted: tuple[Counted, ...] = ()

    @property
    def joined(self) -> tuple[str, ...]:
        """Auxiliary sites of the guide that draw latents of all data at once."""
        return tuple(dict.fromkeys(name for names in self.together.values() for name in names))

    @property
    def needs_all(self) -> bool:
        """Whether a bound speaks of the data that one pass holds."""
        beside = self.beside or self.beside_in_guide or self.by_count
        return bool(self.found or self.informed or self.following or beside)

    @property
    def scaled(self) -> tuple[str, ...]:
        """Sums over the rows, whatever the look: a minibatch has B of N of their terms."""
        return tuple(n for n in self.sums if n not in self.means + self.no_sums)

    @property
    def of_each_batch(self) -> tuple[str, ...]:
        """What weighs as the data do where each batch stands alone: all but means of the rows."""
        return tuple(dict.fromkeys((*self.scaled, *self.no_sums, *self.untold, *self.unplated)))

    def scaled_itself(self, size: int) -> frozenset[str]:
        """Return the sites that the program weighs by N/B itself.

        Arguments:
            size: N.
        """
        looks: dict[str, list[Counted]] = {}
        for each in self.counted:
            looks.setdefault(each.site, []).append(each)
        return frozenset(
            name
            for name, found in looks.items()
            if any(each.is_of(size) for each in found)
            and (name not in self.by_count or _is_constant([each.total for each in found]))
        )

    def weighed_beside(self, size: int, rows: int) -> int:
        """Return the rows beside which the program weighs its global latents by B/N itself.

        Arguments:
            size: N.
            rows: Of the batch at hand.

        Returns:
            B; 0 where it does not.
        """
        own = self.scaled_itself(size)
        outside = [each for each in self.counted if not each.inside and each.site in own]
        found = [each for each in outside if each.is_of(size)]
        constant = [each.rows for each in found if each.site not in self.by_count]
        return constant[0] if constant else rows * bool(found)

    def written_in(self, size: int) -> frozenset[str]:
        """Return those of ``scaled_itself`` whose weight is a constant, in batches of one B alone.

        Arguments:
            size: N.
        """
        return self.scaled_itself(size) - set(self.by_count)

    def written_for(self, size: int) -> int:
        """Return the rows of the batches for which a constant is N/B; 0 where none is.

        Arguments:
            size: N.
        """
        own = self.written_in(size)
        inside = (each for each in self.counted if each.inside and each.site in own)
        return next((each.rows for each in inside if each.is_of(size)), 0)

    def at(self, rows: int) -> "Dependence":
        """Return what is known of batches of so many rows: a constant is N/B of one B alone."""
        counted = (each for each in self.counted if each.site in self.by_count or each.rows == rows)
        return replace(self, counted=tuple(counted))

    def with_part(self, part: tuple[Trace, Trace]) -> "Dependence":
        """Return what is known once a run on a part of the batch tells weights of its rows.

        Arguments:
            part: Its traces.
        """
        counted = counted_of(part, {each.site for each in self.counted})
        whole, fewer = weights_of(self.counted), weights_of(counted)
        moved = {n for n in whole if not whole[n].allclose(fewer.get(n, whole[n]))}
        by_count = tuple(dict.fromkeys((*self.by_count, *sorted(moved))))
        more = tuple(each for each in counted if each.site in by_count)
        return replace(self, by_count=by_count, counted=self.counted + more)

    @property
    def untold(self) -> tuple[str, ...]:
        """Terms outside that are sums to one look and means to another, or to none, but noise."""
        found = (name for name in self.found if name not in self.restless)
        return tuple(n for n in found if (n in self.sums) == (n in self.means))

    @property
    def of_parts(self) -> tuple[str, ...]:
        """Sites for which ``require_parts`` refuses: of a part of the data they are others."""
        return (*self.unplated, *self.beside, *self.priors, *self.no_sums, *self.untold)

    @property
    def unclear(self) -> tuple[str, ...]:
        """Terms of noise of which no look has told what they are of the rows."""
        told = (*self.sums, *self.means, *self.no_sums)
        return tuple(name for name in self.restless if name not in told)

    def joined_with(self, other: "Dependence") -> "Dependence":
        """Return what two looks at one structure have found together."""
        found = {
            each.name: tuple(dict.fromkeys(getattr(self, each.name) + getattr(other, each.name)))
            for each in fields(self)
            if each.name not in ("carried", "together")
        }
        spanning = set(found["spanning"])
        found["of_rows"] = tuple(name for name in found["of_rows"] if name not in spanning)
        carried = {**self.carried, **other.carried}
        return Dependence(**found, carried=carried, together={**self.together, **other.together})

    @property
    def found(self) -> tuple[str, ...]:
        """Sites that make the density of the data one of all together."""
        return self.spanning + self.of_rows


def _is_constant(numbers: list[float]) -> bool:
    return max(numbers) - min(numbers) < 1e-4 * max(numbers)
