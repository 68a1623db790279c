// oauth2-mock-server as tests need it. Arguments: port, key and certificate in PEM.
// The requested scope is a JSON object: claims for the token, the length of one more, `padding`, and whether
// the token is `forged`. Prints each token.
const { OAuth2Server } = require("oauth2-mock-server");

const [port, key, certificate] = process.argv.slice(2);
const server = new OAuth2Server(key, certificate);
server.service.on("beforeTokenSigning", (token, request) => {
  const { padding = 0, forged, ...claims } = JSON.parse(request.body.scope);
  Object.assign(token.payload, { sub: "mailsonde" }, claims, { scope: undefined, padding: "p".repeat(padding) });
});
server.service.on("beforeResponse", ({ body }, request) => {
  if (JSON.parse(request.body.scope).forged) body.access_token = body.access_token.slice(0, -8) + "AAAAAAAA";
  console.log(body.access_token);
});
server.issuer.keys.generate("RS256").then(() => server.start(Number(port), "127.0.0.1"));
