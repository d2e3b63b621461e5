// A ranking as a value: tiers of equally good positions, the best first, and what cannot be ranked. Nothing is changed
// in place; every function gives a new ranking.

export const ranked = (count) => ({ tiers: Array.from({ length: count }, (_, place) => [place]), unrankable: [] });

export const order = ({ tiers, unrankable }) => [...tiers.flat(), ...unrankable];

const tierOf = (ranking, one) => ranking.tiers.findIndex((tier) => tier.includes(one));

export function without(ranking, one) {
  return {
    tiers: ranking.tiers.map((tier) => tier.filter((other) => other !== one)).filter((tier) => tier.length),
    unrankable: ranking.unrankable.filter((other) => other !== one),
  };
}

// As a tier of its own, before the tier that is now at `place`.
export function placedAt(ranking, one, place) {
  const rest = without(ranking, one);
  const own = tierOf(ranking, one);
  const wasAlone = own >= 0 && ranking.tiers[own].length === 1;
  const at = wasAlone && own < place ? place - 1 : place;
  return { ...rest, tiers: [...rest.tiers.slice(0, at), [one], ...rest.tiers.slice(at)] };
}

// Out of a tie to its near side; a single one past its whole neighbour.
export function moved(ranking, one, down) {
  const at = tierOf(ranking, one);
  if (at < 0) return down ? ranking : placedAt(ranking, one, ranking.tiers.length);
  if (ranking.tiers[at].length > 1) return placedAt(ranking, one, down ? at + 1 : at);
  const to = down ? at + 2 : at - 1;
  return to < 0 || to > ranking.tiers.length ? ranking : placedAt(ranking, one, to);
}

export function tiedWith(ranking, one, other) {
  if (one === other) return ranking;
  const rest = without(ranking, one);
  return { ...rest, tiers: rest.tiers.map((tier) => (tier.includes(other) ? [...tier, one] : tier)) };
}

// Equally good as the one above; out of the tie again where it was in one.
export function tieToggled(ranking, one) {
  const at = tierOf(ranking, one);
  if (at < 0) return ranking;
  if (ranking.tiers[at].length > 1) return placedAt(ranking, one, at + 1);
  return at === 0 ? ranking : tiedWith(ranking, one, ranking.tiers[at - 1][0]);
}

export function unrankableToggled(ranking, one) {
  if (ranking.unrankable.includes(one)) return placedAt(ranking, one, ranking.tiers.length);
  const rest = without(ranking, one);
  return { ...rest, unrankable: [...rest.unrankable, one] };
}
