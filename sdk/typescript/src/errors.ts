/** What the error envelope of an answer says, plus where it came from. */
export interface CrowNestApiErrorInit {
  readonly status: number;
  readonly code: string;
  readonly message: string;
  readonly details?: Record<string, unknown>;
  readonly requestId?: string;
}

/**
 * An error that the API answered with. Branch on `code`; `status` 429 and 500
 * and above are worth another try.
 */
export class CrowNestApiError extends Error {
  override readonly name = "CrowNestApiError";
  /** HTTP status of the answer; 0 for an error event inside a stream. */
  readonly status: number;
  /** Machine-readable code, for instance `sandbox_destroyed`. */
  readonly code: string;
  declare readonly details?: Record<string, unknown>;
  /** Names the request in the server's log. */
  declare readonly requestId?: string;

  constructor(init: CrowNestApiErrorInit) {
    super(init.message);
    this.status = init.status;
    this.code = init.code;
    if (init.details !== undefined) this.details = init.details;
    if (init.requestId !== undefined) this.requestId = init.requestId;
  }
}

/** The code of an error answer that carries no envelope. */
export const INVALID_ERROR_RESPONSE = "invalid_error_response";

/** Turns the body of an answer that is not a success into the error to throw. */
export function apiErrorFrom(response: Response, body: string): CrowNestApiError {
  const requestId = response.headers.get("x-request-id") ?? undefined;
  const envelope = errorField(body);
  if (envelope === undefined) {
    return new CrowNestApiError({
      status: response.status,
      code: INVALID_ERROR_RESPONSE,
      message: `HTTP ${response.status} without an error envelope`,
      requestId,
    });
  }
  return new CrowNestApiError({ ...envelope, status: response.status, requestId });
}

function errorField(body: string) {
  let parsed: unknown;
  try {
    parsed = JSON.parse(body);
  } catch {
    return undefined;
  }
  const error = isRecord(parsed) ? parsed["error"] : undefined;
  if (!isRecord(error) || typeof error["code"] !== "string" || typeof error["message"] !== "string") {
    return undefined;
  }
  const details = error["details"];
  return {
    code: error["code"],
    message: error["message"],
    ...(isRecord(details) ? { details } : {}),
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
