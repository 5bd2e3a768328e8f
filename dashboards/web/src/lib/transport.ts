/** How the service is reached. The page that `gradwarden export` writes has its own way. */
export function ask(path: string, init: RequestInit): Promise<Response> {
  return fetch(path, { credentials: "same-origin", ...init });
}
