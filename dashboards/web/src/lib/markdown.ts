/**
 * The part of Markdown that runbooks use, as a tree. Runbooks may come from anyone, so nothing in
 * here makes HTML: a component draws the tree, and only web links stay links.
 */

export type Span =
  | { kind: "text" | "code" | "strong" | "em"; text: string }
  | { kind: "link"; text: string; href: string };

export type Block =
  | { kind: "heading"; level: number; spans: Span[] }
  | { kind: "paragraph"; spans: Span[] }
  | { kind: "code"; text: string }
  | { kind: "list"; ordered: boolean; items: Span[][] };

const INLINE =
  /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\(([^)\s]+)\)|<(https?:\/\/[^>\s]+)>/g;

/** A link that may be followed: the web, or a sibling runbook ("Other.md"); null for the rest. */
export function safeHref(href: string): string | null {
  if (/^https?:\/\//i.test(href)) return href;
  const sibling = /^([A-Za-z0-9_-]+)\.md$/.exec(href);
  return sibling ? `/runbooks/${sibling[1]}` : null;
}

export function spans(text: string): Span[] {
  const out: Span[] = [];
  let at = 0;
  const plain = (upTo: number) => {
    if (upTo > at) out.push({ kind: "text", text: text.slice(at, upTo) });
  };
  for (const found of text.matchAll(INLINE)) {
    plain(found.index);
    at = found.index + found[0].length;
    const [, code, strong, em, label, href, bare] = found;
    const link = href ?? bare;
    if (code) out.push({ kind: "code", text: code });
    else if (strong) out.push({ kind: "strong", text: strong });
    else if (em) out.push({ kind: "em", text: em });
    else if (link) {
      const safe = safeHref(link);
      out.push(safe ? { kind: "link", text: label ?? bare, href: safe } : { kind: "text", text: label ?? bare });
    }
  }
  plain(text.length);
  return out;
}

export function plainText(line: Span[]): string {
  return line.map((span) => span.text).join("");
}

export function parse(source: string): Block[] {
  const out: Block[] = [];
  let lines: string[] = [];
  let items: string[] | null = null;
  let ordered = false;
  const close = () => {
    if (items) out.push({ kind: "list", ordered, items: items.map(spans) });
    else if (lines.length) out.push({ kind: "paragraph", spans: spans(lines.join(" ")) });
    items = null;
    lines = [];
  };
  const rows = source.replaceAll("\r\n", "\n").split("\n");
  for (let k = 0; k < rows.length; k++) {
    const row = rows[k];
    const fence = /^\s*(```|~~~)/.exec(row);
    if (fence) {
      close();
      const end = rows.findIndex((other, n) => n > k && other.trim().startsWith(fence[1]));
      const last = end < 0 ? rows.length : end;
      out.push({ kind: "code", text: rows.slice(k + 1, last).join("\n") });
      k = last;
      continue;
    }
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(row);
    const item = /^\s*(?:(\d+)[.)]|[-*+])\s+(.*)$/.exec(row);
    if (!row.trim()) {
      // A list goes on behind an empty line when another item follows.
      if (!items || !/^\s*(?:\d+[.)]|[-*+])\s/.test(rows[k + 1] ?? "")) close();
    } else if (heading) {
      close();
      out.push({ kind: "heading", level: heading[1].length, spans: spans(heading[2]) });
    } else if (item) {
      if (!items || ordered !== Boolean(item[1])) {
        close();
        items = [];
      }
      ordered = Boolean(item[1]);
      items!.push(item[2]);
    } else if (items && /^\s/.test(row)) {
      items[items.length - 1] += ` ${row.trim()}`;
    } else {
      if (items) close();
      lines.push(row.trim());
    }
  }
  close();
  return out;
}
