/** Server-sent events over fetch: unlike EventSource it can resume and can say why it failed. */

export interface Message {
  id: string;
  event: string;
  data: unknown;
}

/** The whole messages at the head of `text`, and what is left; comments are beats. */
export function parse(text: string): { messages: Message[]; rest: string } {
  const parts = text.split("\n\n");
  const rest = parts.pop()!;
  const messages: Message[] = [];
  for (const part of parts) {
    const fields: Record<string, string> = {};
    for (const line of part.split("\n")) {
      const at = line.indexOf(":");
      if (at > 0) fields[line.slice(0, at)] = line.slice(at + 1).trimStart();
    }
    if (fields.event) messages.push({ id: fields.id ?? "", event: fields.event, data: JSON.parse(fields.data ?? "null") });
  }
  return { messages, rest };
}

export class Refused extends Error {
  constructor(
    readonly status: number,
    /** Seconds after which to come back, where the service named them. */
    readonly after: number | null,
  ) {
    super(`HTTP ${status}`);
  }
}

interface Heard {
  opened: () => void;
  /** Bytes arrived: a message, part of one, or a beat. */
  beat: () => void;
  message: (message: Message) => void;
}

/** One connection until it ends; throws `Refused` where the service refuses it. */
export async function listen(url: string, lastId: string | null, signal: AbortSignal, heard: Heard): Promise<void> {
  const headers: HeadersInit = lastId ? { "Last-Event-ID": lastId } : {};
  const response = await fetch(url, { credentials: "same-origin", headers, signal, cache: "no-store" });
  if (!response.ok || !response.body) {
    throw new Refused(response.status, Number(response.headers.get("retry-after")) || null);
  }
  heard.opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard.beat();
    const found = parse(text + value);
    text = found.rest;
    found.messages.forEach(heard.message);
  }
}
