/** What the file holds: facts, and what the service answered, packed part by part. */

export interface Facts {
  run: string;
  project: string;
  /** When the file was written, RFC 3339. */
  exported_at: string;
  /** The address of the service that wrote it. */
  service: string;
  version: string;
  /** First and last step asked for; null for an open end. */
  from: number | null;
  to: number | null;
  /** What is known of the run beside its numbers, in the order to show it. */
  meta: Record<string, string | number>;
}

interface Kept {
  facts: Facts;
  parts: Record<string, string>;
  missing: string[];
}

const kept = JSON.parse(document.getElementById("kept")!.textContent) as Kept;

export const facts = kept.facts;
export const missing = kept.missing;
export const names = new Set(Object.keys(kept.parts));

/** The bytes of one part, as the service sent them. */
export async function part(name: string): Promise<ArrayBuffer> {
  const packed = Uint8Array.from(atob(kept.parts[name]), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export async function json<T>(name: string): Promise<T> {
  return JSON.parse(new TextDecoder().decode(await part(name))) as T;
}
