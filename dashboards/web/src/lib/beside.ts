/** Other numbers on the steps of this run, under keys of their own: another run's, or another attempt's. Pure. */

import type { SeriesColumns, SeriesFace } from "./schema";

export const OTHER = "other:";
/** The prefix of what an attempt told of steps that a later one did again. */
export const again = (ordinal: number) => `attempt ${ordinal}:`;

/** Both over the union of their steps, up to the last step of `series`; the other's keys are prefixed. */
export function beside(series: SeriesFace, other: SeriesFace, prefix = OTHER): SeriesFace {
  const last = series.step[series.step.length - 1] ?? -1;
  const steps = [...new Set([...series.step, ...other.step.filter((step) => step <= last)])].sort((a, b) => a - b);
  const keys: SeriesFace["keys"] = {};
  for (const [from, before] of [[series, ""], [other, prefix]] as const) {
    const at = new Map(from.step.map((step, k) => [step, k]));
    const places = steps.map((step) => at.get(step));
    const pick = <T>(column: T[], none: T) => places.map((k) => (k === undefined ? none : column[k]));
    for (const [key, column] of Object.entries(from.keys)) {
      const spread: SeriesColumns = {
        min: pick(column.min, null), max: pick(column.max, null), last: pick(column.last, null),
        nonfinite: pick(column.nonfinite, 0),
      };
      keys[before + key] = held(spread, places);
    }
  }
  return { step: steps, time_ns: steps.map((_, k) => k), keys, reported: series.reported };
}

/** Where only the other run has a step, a line goes on from its step before, up to its last one. */
function held(column: SeriesColumns, places: (number | undefined)[]): SeriesColumns {
  const end = places.findLastIndex((k) => k !== undefined);
  const fill = (values: SeriesColumns["last"]) => {
    let before: number | null = null;
    return values.map((value, k) => (places[k] !== undefined ? (before = value) : k < end ? before : null));
  };
  return { min: fill(column.min), max: fill(column.max), last: fill(column.last), nonfinite: column.nonfinite };
}
