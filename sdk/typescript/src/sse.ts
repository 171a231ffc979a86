/** One server-sent event. */
export interface ServerSentEvent {
  readonly id?: string;
  readonly data: string;
}

// The API keeps a line below 4 MiB. Four times that much without a line end is
// no event stream, and must not fill the memory.
const MAX_EVENT_CHARS = 16 * 1024 * 1024;

/**
 * Cuts a byte stream into server-sent events. It holds the pieces of a line
 * that is not complete yet in a list, so that a long line that arrives in many
 * pieces costs linear time. An event that the end of the stream cuts off is
 * dropped: the reader is to ask for it again.
 */
export class EventParser {
  readonly #decoder = new TextDecoder();
  #pieces: string[] = [];
  #length = 0;
  #afterCarriageReturn = false;
  #id: string | undefined;
  #data: string[] = [];

  /** Takes the next bytes and gives the events that they complete. */
  push(bytes: Uint8Array): ServerSentEvent[] {
    const text = this.#decoder.decode(bytes, { stream: true });
    const events: ServerSentEvent[] = [];
    let start = 0;
    if (this.#afterCarriageReturn && text.length > 0) {
      if (text.charCodeAt(0) === LF) start = 1;
      this.#afterCarriageReturn = false;
    }
    let lf = text.indexOf("\n", start);
    let cr = text.indexOf("\r", start);
    for (;;) {
      // Each search goes on where its last hit was: a piece is searched once.
      if (lf !== -1 && lf < start) lf = text.indexOf("\n", start);
      if (cr !== -1 && cr < start) cr = text.indexOf("\r", start);
      const end = cr === -1 ? lf : lf === -1 ? cr : Math.min(lf, cr);
      if (end === -1) break;
      this.#keep(text.slice(start, end));
      const event = this.#line(this.#pieces.length === 1 ? this.#pieces[0]! : this.#pieces.join(""));
      if (event !== undefined) events.push(event);
      this.#pieces = [];
      start = end + 1;
      if (text.charCodeAt(end) === CR) {
        if (start === text.length) this.#afterCarriageReturn = true;
        else if (text.charCodeAt(start) === LF) start++;
      }
    }
    if (start < text.length) this.#keep(text.slice(start));
    return events;
  }

  #keep(piece: string): void {
    this.#length += piece.length;
    if (this.#length > MAX_EVENT_CHARS) throw new Error("the event stream holds an event that is too long");
    this.#pieces.push(piece);
  }

  #line(line: string): ServerSentEvent | undefined {
    if (line === "") {
      const event =
        this.#data.length === 0
          ? undefined
          : { data: this.#data.join("\n"), ...(this.#id === undefined ? {} : { id: this.#id }) };
      this.#data = [];
      this.#id = undefined;
      this.#length = 0;
      return event;
    }
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    if (field === "data") this.#data.push(valueAfter(line, colon));
    else if (field === "id") this.#id = valueAfter(line, colon);
    else this.#length -= line.length; // a comment or an unknown field keeps nothing
    return undefined;
  }
}

const LF = 10;
const CR = 13;

function valueAfter(line: string, colon: number): string {
  if (colon === -1) return "";
  return line.slice(line.charCodeAt(colon + 1) === 32 ? colon + 2 : colon + 1);
}
