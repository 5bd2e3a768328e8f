/** Ranks compared with each other, column by column, and told in words. Pure. */

import * as f from "./format";
import type { RankLine, RankStrips } from "./schema";

/** Half the median of all ranks, or twice it, is drawn in the strongest colour. */
const REACH = 1;

/** An answer is asked for anew after so long, whatever was told since: a rank may have fallen silent. */
const STILL_MS = 30_000;

const known = (v: number | null | undefined): v is number => v !== null && v !== undefined && v > 0;

/** How many times the median of all ranks this one took; null where there is nothing to compare. */
function ratio(all: RankStrips, rank: RankLine, col: number): number | null {
  const mine = rank.seconds[col];
  const usual = all.usual[col];
  return known(mine) && known(usual) ? mine / usual : null;
}

/** By column the bytes of the diverging map: its middle where nothing is known but that it told. */
export function cells(all: RankStrips, rank: RankLine): number[] {
  return rank.told.map((_, col) => {
    const times = ratio(all, rank, col);
    if (times === null) return 128;
    const away = Math.max(-1, Math.min(1, Math.log2(times) / REACH));
    return Math.max(1, Math.min(254, Math.round(127.5 + away * 126.5)));
  });
}

/** Of a column the rank that took longest, where it took a tenth longer than the median. */
export function slowest(all: RankStrips, col: number): { rank: number; times: number } | null {
  const [rank, longest, usual] = [all.slowest[col], all.longest[col], all.usual[col]];
  if (rank === null || rank === undefined || !known(longest) || !known(usual)) return null;
  return longest / usual > 1.1 ? { rank, times: longest / usual } : null;
}

/** Whether to ask again: there is a column's worth of new steps, or the answer is old. */
export function due(all: RankStrips, fresh: number, age_ms: number): boolean {
  return age_ms >= STILL_MS || fresh >= (all.step.length > 1 ? all.step[1] - all.step[0] : 1);
}

/** What is to be said of the ranks that there is no room for. */
export function unseen(all: RankStrips): string {
  const odd = all.left_out_odd;
  return `${f.count(all.left_out, "rank")} not shown, ${odd ? `something is odd about ${f.step(odd)} of them` : "nothing is odd about those"}`;
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
