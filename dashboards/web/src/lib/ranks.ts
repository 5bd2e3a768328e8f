/** Ranks compared with each other, column by column, and told in words. Pure. */

import * as f from "./format";
import type { RankLine, RankStrips } from "./schema";

/** Half the median of all ranks, or twice it, is drawn in the strongest colour. */
const REACH = 1;

export function median(values: number[]): number | null {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const known = (v: number | null | undefined): v is number => v !== null && v !== undefined && v > 0;

/** How many times the median of all ranks this one took; null where there is nothing to compare. */
export function ratio(all: RankStrips, rank: RankLine, col: number): number | null {
  const mine = rank.seconds[col];
  const usual = median(all.ranks.map((one) => one.seconds[col]).filter(known));
  return known(mine) && usual ? mine / usual : null;
}

/** The byte of the diverging map for one cell: its middle where nothing is known but that it told. */
export function cell(all: RankStrips, rank: RankLine, col: number): number {
  const times = ratio(all, rank, col);
  if (times === null) return 128;
  const away = Math.max(-1, Math.min(1, Math.log2(times) / REACH));
  return Math.max(1, Math.min(254, Math.round(127.5 + away * 126.5)));
}

/** Of a column the rank that took longest, where it took a tenth longer than the median. */
export function slowest(all: RankStrips, col: number): { rank: number; times: number } | null {
  const told = all.ranks.flatMap((rank) => {
    const times = ratio(all, rank, col);
    return times === null ? [] : [{ rank: rank.rank, times }];
  });
  const most = told.reduce<{ rank: number; times: number } | null>((a, b) => (a && a.times >= b.times ? a : b), null);
  return most && most.times > 1.1 ? most : null;
}

export function words(rank: RankLine, now: number): string {
  const parts = [`rank ${rank.rank}: ${rank.state}`];
  if (rank.host) parts.push(`on ${rank.host}`);
  if (rank.last_step !== null) parts.push(`step ${f.step(rank.last_step)}`);
  if (rank.lag_steps) parts.push(`${f.count(rank.lag_steps, "step")} behind`);
  if (rank.state === "silent" && rank.last_seen_ns !== null) parts.push(`last heard ${f.age(now / 1000 - rank.last_seen_ns / 1e9)} ago`);
  if (rank.first_bad_step !== null) parts.push(`first not finite at step ${f.step(rank.first_bad_step)}`);
  if (rank.drift_step !== null) parts.push(`its replica differs from step ${f.step(rank.drift_step)}`);
  return parts.join(", ");
}
