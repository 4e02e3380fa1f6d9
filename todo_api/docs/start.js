// Shows the document beside this page; no validator, no font and no script from elsewhere.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  validatorUrl: null,
  persistAuthorization: false,
  tryItOutEnabled: true,
});
