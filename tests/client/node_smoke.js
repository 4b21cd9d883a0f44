// Who am I, and a validation, by Node's grpc-js with the same protos: node node_smoke.js ADDRESS KEY PROTOS
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, key, protos] = process.argv.slice(2);
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);

function stub(area, service) {
  const file = path.join(protos, `trunkline/api/${area}/v1/${area}_service.proto`);
  const loaded = loader.loadSync(file, { includeDirs: [protos], enums: String, keepCase: true });
  const found = grpc.loadPackageDefinition(loaded).trunkline.api[area].v1[service];
  return new found(address, grpc.credentials.createInsecure());
}

stub("identity", "IdentityService").WhoAmI({}, metadata, (error, who) => {
  if (error) throw error;
  console.log(who.org_slug, who.role);
  const members = stub("members", "MemberService");
  members.ValidateMember({ member_number: "A-1" }, metadata, (failed, reply) => {
    if (failed) throw failed;
    console.log(reply.validation.decision);
    process.exit(0);
  });
});
